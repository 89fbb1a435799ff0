"""The sidebar "Feedback" in the browser: lists, stars, filters, and how it copes with very many pictures."""

from __future__ import annotations

import re
import uuid

import pytest
from playwright.sync_api import expect

from feedback_loop.tests.browser.sidebar_page import API, Sidebar, fill

ROW_HEIGHT = 96


def test_stars_clicked_in_the_sidebar_are_stored_and_the_same_star_clears(sidebar: Sidebar, three: list[str]) -> None:
    sidebar.star(three[1], 4).click()
    expect(sidebar.row(three[1]).locator(".fl-lit")).to_have_count(4)
    sidebar.expect_stored(three[1], [(4, "me")])
    sidebar.star(three[1], 4).click()
    expect(sidebar.row(three[1]).locator(".fl-lit")).to_have_count(0)
    sidebar.expect_stored(three[1], [])
    assert sidebar.comfy_page.errors == []


def test_the_keyboard_alone_walks_and_rates(sidebar: Sidebar, three: list[str]) -> None:
    """From the last filter, Tab leads to the list; arrows choose a picture, a digit rates it, Space shows it large."""
    keyboard = sidebar.page.keyboard
    sidebar.page.get_by_role("button", name="Clear").focus()
    keyboard.press("Tab")
    expect(sidebar.list).to_be_focused()
    keyboard.press("ArrowDown")
    expect(sidebar.row(three[1])).to_have_attribute("aria-selected", "true")
    keyboard.press("5")
    sidebar.expect_stored(three[1], [(5, "me")])
    keyboard.press("End")
    keyboard.press("2")
    sidebar.expect_stored(three[2], [(2, "me")])
    keyboard.press(" ")
    view = sidebar.page.locator("dialog.fl-full")
    expect(view).to_be_visible()
    keyboard.press("ArrowLeft")
    keyboard.press("Escape")
    expect(view).to_have_count(0)
    # Where the large view ended, the list goes on.
    expect(sidebar.list).to_be_focused()
    expect(sidebar.row(three[1])).to_have_attribute("aria-selected", "true")
    assert sidebar.stored(three[0]) == []


def test_a_rating_that_cannot_be_stored_goes_back_and_says_why(sidebar: Sidebar, three: list[str]) -> None:
    answer = {"status": 503, "json": {"error": "The disk is full."}}
    sidebar.page.route("**/ratings", lambda route: route.fulfill(**answer))
    sidebar.star(three[0], 5).click()
    expect(sidebar.page.get_by_text("The disk is full.").first).to_be_visible()
    expect(sidebar.row(three[0]).locator(".fl-lit")).to_have_count(0)


def test_text_from_a_prompt_is_shown_as_text(sidebar: Sidebar) -> None:
    hostile = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    collection = f'sidebar <b onclick="window.hacked=1">{uuid.uuid4()}</b>'
    store = sidebar.store()
    (image_id,) = fill(store, collection, [hostile])
    store.close()
    sidebar.tab("Pictures")
    sidebar.more_filters()
    sidebar.page.get_by_role("button", name="Clear").click()
    expect(sidebar.row(image_id).locator(".fl-row-prompt")).to_have_text(hostile)
    expect(sidebar.row(image_id).locator(".fl-row-facts")).to_contain_text(collection)
    assert sidebar.page.evaluate("() => window.hacked") is None


def test_filters_leave_what_was_asked_for_and_sorting_orders_it(sidebar: Sidebar, three: list[str]) -> None:
    newest, frog, oldest = three
    choose = sidebar.page.get_by_label
    choose("Search prompts").fill("red")
    sidebar.expect_shown([newest, oldest])
    choose("Search prompts").fill("")
    sidebar.expect_shown(three)

    sidebar.star(frog, 2).click()
    sidebar.star(oldest, 5).click()
    sidebar.expect_stored(frog, [(2, "me")])
    sidebar.expect_stored(oldest, [(5, "me")])
    choose("Rated or not").select_option("false")
    sidebar.expect_shown([newest])
    choose("Rated or not").select_option("true")
    choose("Order").select_option("best")
    sidebar.expect_shown([oldest, frog])
    # From one star to two: a quarter of the scale at most.
    choose("Most stars").select_option("2")
    sidebar.expect_shown([frog])
    choose("Most stars").select_option("")
    choose("Captured since").fill("2100-01-01")
    sidebar.expect_shown([])
    assert sidebar.comfy_page.errors == []


def test_who_asks_for_watermarks_sees_how_far_the_detector_is_and_then_the_pictures(
    sidebar: Sidebar, three: list[str]
) -> None:
    """These came from another process, so nothing has looked at them; afterwards each has a score between 0 and 1."""
    sidebar.page.get_by_label("Order").select_option("watermark")
    sidebar.comfy_page.poll(lambda: sorted(sidebar.shown()) == sorted(three), 120)
    expect(sidebar.element.locator(".fl-watermarks")).to_be_hidden()
    expect(sidebar.row(three[0]).locator(".fl-row-facts")).to_contain_text(re.compile(r"watermark [01]\.\d\d"))
    scores = [sidebar.server.get(f"{API}/images/{id_}")["watermark"] for id_ in sidebar.shown()]
    assert scores == sorted(scores, reverse=True)
    # While many wait, the panel says so; what is said on the way, here by hand, is what the server sends.
    tell = "left => app.api.dispatchCustomEvent('feedback_loop.watermarks', { done: 16, left })"
    sidebar.page.evaluate(tell, 2984)
    expect(sidebar.element.locator(".fl-watermarks")).to_contain_text("16 of 3,000 pictures")
    sidebar.page.evaluate(tell, 0)
    expect(sidebar.element.locator(".fl-watermarks")).to_be_hidden()
    assert sidebar.comfy_page.errors == []


def test_pairs_are_answered_by_keys_and_the_one_before_can_be_answered_anew(sidebar: Sidebar) -> None:
    collection = f"sidebar {uuid.uuid4()}"
    store = sidebar.store()
    fill(store, collection, ["a red fox"] * 4)
    store.close()
    sidebar.look_at(collection)
    sidebar.tab("Compare")
    keyboard = sidebar.page.keyboard
    pair = sidebar.page.locator(".fl-ab")
    count = pair.locator(".fl-count")
    expect(pair.locator(".fl-ab-image").first).to_have_attribute("data-image-id", re.compile("-"))
    query = (
        "SELECT winner, policy FROM comparison c JOIN image ON image.id = left_id JOIN judgement j ON j.id = c.id "
        "WHERE collection = ? AND NOT EXISTS (SELECT 1 FROM judgement undo WHERE undo.supersedes = j.id) "
        "ORDER BY j.revision"
    )
    pair.focus()
    keyboard.press("ArrowRight")
    expect(count).to_have_text("1 pair compared")
    sidebar.expect_rows([("right", "learn")], query, collection)
    keyboard.press("b")
    keyboard.press("ArrowUp")
    sidebar.expect_rows([("both_bad", "learn")], query, collection)
    # Until the other pair is there, keys answer the one that is shown.
    with sidebar.page.expect_response(re.compile("policy=train")):
        sidebar.page.get_by_text("To train", exact=True).click()
    expect(pair.locator(".fl-ab-image").first).to_have_attribute("data-image-id", re.compile("-"))
    pair.focus()
    keyboard.press("ArrowDown")
    expect(count).to_have_text("2 pairs compared")
    sidebar.expect_rows([("both_bad", "learn"), ("tie", "train")], query, collection)
    keyboard.press(" ")
    expect(sidebar.page.locator("dialog.fl-ab-large")).to_be_visible()
    keyboard.press("Escape")
    expect(sidebar.page.locator("dialog.fl-ab-large")).to_have_count(0)


def test_deleting_a_picture_asks_first_and_takes_what_was_said_of_it(sidebar: Sidebar, three: list[str]) -> None:
    doomed = three[1]
    sidebar.star(doomed, 1).click()
    sidebar.expect_stored(doomed, [(1, "me")])
    sidebar.page.keyboard.press("Tab")
    sidebar.list.focus()
    sidebar.page.keyboard.press("Home")
    sidebar.page.keyboard.press("ArrowDown")
    sidebar.page.keyboard.press("Delete")
    dialog = sidebar.page.get_by_role("dialog")
    expect(dialog).to_contain_text("Delete this picture?")
    dialog.get_by_role("button", name="Cancel").click()
    assert sidebar.server.request("GET", f"{API}/images/{doomed}")[0] == 200
    sidebar.row(doomed).hover()
    sidebar.row(doomed).get_by_label("Delete this picture").click()
    dialog.get_by_role("button", name="Delete").click()
    sidebar.expect_shown([three[0], three[2]])
    assert sidebar.server.request("GET", f"{API}/images/{doomed}")[0] == 404
    assert sidebar.rows_of("SELECT raw FROM rating WHERE image_id = ?", doomed) == []


def test_a_picture_can_be_used_in_the_graph(sidebar: Sidebar, three: list[str]) -> None:
    sidebar.page.evaluate("() => app.graph.clear()")
    sidebar.row(three[0]).click()
    sidebar.page.keyboard.press("g")
    loaded = """() => app.graph.nodes.filter((node) => node.type === 'LoadImage')
        .map((node) => node.widgets.find((widget) => widget.name === 'image').value)"""
    sidebar.comfy_page.poll(lambda: sidebar.page.evaluate(loaded) == [f"feedback_{three[0]}.png"], 30)
    kept = sidebar.server.base_directory / "input" / f"feedback_{three[0]}.png"
    assert kept.read_bytes()[:4] == b"\x89PNG"


def test_the_open_workflow_is_queued_after_as_many_ratings_as_asked(sidebar: Sidebar, three: list[str]) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 7}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    sidebar.comfy_page.load_prompt(prompt)
    sidebar.tab("Progress")
    sidebar.page.get_by_label("After how many new ratings").fill("2")
    switch = sidebar.page.get_by_label("Queue this workflow")
    switch.check()
    expect(sidebar.element).to_contain_text("2 more until the next run")
    before = set(sidebar.server.get("/history"))
    sidebar.tab("Pictures")
    sidebar.star(three[0], 3).click()
    expect(sidebar.element).to_contain_text("1 more until the next run")
    assert set(sidebar.server.get("/history")) == before
    sidebar.star(three[1], 4).click()
    (run,) = sidebar.comfy_page.poll(lambda: set(sidebar.server.get("/history")) - before, 60)
    assert sidebar.server.wait(run)["status"]["status_str"] == "success"
    sidebar.tab("Progress")
    switch.uncheck()


def test_pictures_of_the_output_folder_can_be_added_and_rated(sidebar: Sidebar) -> None:
    """The picture comes from a run without our nodes; its prompt stands in its file alone."""
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 24, "height": 24, "batch_size": 2, "color": 99}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"old {uuid.uuid4()}"}},
    }
    sidebar.server.run(prompt)
    collection = f"history {uuid.uuid4()}"
    sidebar.tab("Progress")
    sidebar.page.get_by_label("Collection for the pictures found").fill(collection)
    sidebar.page.get_by_role("button", name="Rate my history").click()
    expect(sidebar.element).to_contain_text(re.compile(r"[1-9]\d* pictures? added"))
    sidebar.look_at(collection)
    sidebar.comfy_page.poll(sidebar.shown, 60)
    found = sidebar.shown()[0]
    sidebar.star(found, 3).click()
    sidebar.expect_stored(found, [(3, "me")])


def test_the_store_says_what_it_takes_backs_up_and_prunes_what_nobody_judged(
    sidebar: Sidebar, three: list[str]
) -> None:
    sidebar.star(three[2], 5).click()
    sidebar.expect_stored(three[2], [(5, "me")])
    sidebar.tab("Progress")
    expect(sidebar.element.locator(".fl-disk")).to_have_text(re.compile(r"\d pictures, [\d.,]+ (kB|MB) on disk"))
    expect(sidebar.element.locator(".fl-facts")).to_contain_text("none trained yet")
    sidebar.page.get_by_role("button", name="Back up").click()
    expect(sidebar.element.locator(".fl-command")).to_have_text(re.compile("restore feedback-"))
    name = sidebar.element.locator(".fl-command").inner_text().split()[-1]
    assert (sidebar.server.base_directory / "user" / "__feedback_loop" / "backups" / name).exists()
    sidebar.page.get_by_role("button", name="Prune…").click()
    sidebar.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    sidebar.tab("Pictures")
    sidebar.expect_shown([three[2]])


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_with_very_many_pictures_few_elements_exist_and_the_last_one_is_reached(sidebar: Sidebar, count: int) -> None:
    """The panel is about 900 px high and a row 96, so some 10 rows are in sight, and 3 more on either side."""
    collection = f"sidebar {uuid.uuid4()}"
    store = sidebar.store()
    ids = fill(store, collection, [f"picture {number}" for number in range(count)])
    store.close()
    sidebar.look_at(collection)
    expect(sidebar.element.locator(".fl-count").first).to_have_text(f"{count:,} pictures")
    assert sidebar.shown()[0] == ids[0]
    assert len(sidebar.shown()) < 25

    thumbnails: list[str] = []
    sidebar.page.on("request", lambda request: thumbnails.append(request.url) if "/thumbnail" in request.url else None)
    to_the_end = "list => { list.scrollTop = list.scrollHeight }"
    at_the_end = f"list => Math.abs(list.scrollHeight - {count * ROW_HEIGHT}) <= list.clientHeight"

    def reached() -> bool:
        sidebar.list.evaluate(to_the_end)
        return sidebar.list.evaluate(at_the_end)

    sidebar.comfy_page.poll(reached, 300 + count // 100)
    sidebar.list.evaluate(to_the_end)
    expect(sidebar.row(ids[-1])).to_be_visible()
    shown = sidebar.shown()
    assert shown == ids[-len(shown) :]
    assert len(shown) < 25
    assert sidebar.page.locator(".fl-row").count() < 60
    expect(sidebar.row(ids[-1]).locator("img")).to_have_js_property("complete", True)
    # Those that only passed by were not asked for.
    assert len(thumbnails) < count / 4

    sidebar.list.focus()
    sidebar.page.keyboard.press("3")
    sidebar.page.keyboard.press("End")
    sidebar.page.keyboard.press("4")
    sidebar.expect_stored(ids[-1], [(4, "me")])
    sidebar.expect_stored(ids[0], [(3, "me")])
