"""The sidebar "Feedback" in the browser: lists, stars, filters, and how it copes with very many pictures."""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.store import FeedbackStore

API = "/feedback_loop/v1"
ROW_HEIGHT = 96
expect.set_options(timeout=60_000)  # the machine may be busy with other work


class Sidebar:
    """The sidebar, open, and the verbs of a test."""

    def __init__(self, comfy_page: Any) -> None:
        self.comfy_page, self.page, self.server = comfy_page, comfy_page.page, comfy_page.server
        self.element = self.page.locator(".fl-side")
        self.list = self.page.locator(".fl-list")
        if not self.element.is_visible():
            self.page.locator(".feedback-loop-tab-button").click()
        expect(self.element).to_be_visible()

    def store(self) -> FeedbackStore:
        """The server's own store, written by this process too."""
        folder = self.server.base_directory / "user" / "__feedback_loop"
        folder.mkdir(parents=True, exist_ok=True)
        return FeedbackStore(f"sqlite:///{folder / 'feedback.sqlite3'}", folder / "media")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def more_filters(self) -> None:
        if self.page.locator(".fl-more:not([open])").count():
            self.page.locator(".fl-more summary").click()

    def look_at(self, collection: str) -> None:
        """Chooses a collection, as somebody does who opens the panel after its pictures came."""
        self.tab("Pictures")
        self.page.locator(".feedback-loop-tab-button").click()
        expect(self.element).to_have_count(0)
        self.page.locator(".feedback-loop-tab-button").click()
        self.more_filters()
        self.page.get_by_role("button", name="Clear").click()
        option = self.page.get_by_label("Collection", exact=True).locator(f'option[value="{collection}"]')
        expect(option).to_have_count(1)
        self.page.get_by_label("Collection", exact=True).select_option(collection)

    def row(self, image_id: str) -> Locator:
        return self.page.locator(f'.fl-row[data-image-id="{image_id}"]')

    def star(self, image_id: str, stars: int) -> Locator:
        return self.row(image_id).locator(f'.fl-star[data-stars="{stars}"]')

    def rows_of(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """What a query says, straight from the database file."""
        path = self.server.base_directory / "user" / "__feedback_loop" / "feedback.sqlite3"
        connection = sqlite3.connect(f"file:{path}?mode=ro", timeout=60, uri=True)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def expect_rows(self, rows: list[tuple[Any, ...]], query: str, *values: str) -> None:
        self.comfy_page.poll(lambda: self.rows_of(query, *values) == rows, 60)

    def shown(self) -> list[str]:
        """The ids of the rows in the document, from top to bottom."""
        script = """rows => rows.filter(row => !row.hidden)
            .sort((a, b) => a.getAttribute('aria-posinset') - b.getAttribute('aria-posinset'))
            .map(row => row.dataset.imageId)"""
        return self.page.locator(".fl-row").evaluate_all(script)

    def expect_shown(self, ids: list[str]) -> None:
        self.comfy_page.poll(lambda: self.shown() == ids, 60)

    def stored(self, image_id: str) -> list[tuple[float, str]]:
        ratings = self.server.get(f"{API}/images/{image_id}")["ratings"]
        return [(rating["value"], rating["rater"]) for rating in ratings]

    def expect_stored(self, image_id: str, ratings: list[tuple[float, str]]) -> None:
        self.comfy_page.poll(lambda: self.stored(image_id) == ratings, 30)


def fill(store: FeedbackStore, collection: str, prompts: list[str]) -> list[str]:
    """Records one small picture for each prompt, in one transaction for each thousand; ids, newest first."""
    rng = np.random.default_rng(5)
    pixels = [rng.integers(0, 255, (24, 24, 3), dtype=np.uint8) for _ in range(min(50, len(prompts)))]
    made = [(pixels[i % len(pixels)], Generation(prompt=prompt, seed=str(i))) for i, prompt in enumerate(prompts)]
    ids = [id_ for at in range(0, len(made), 1000) for id_ in store.add_images(made[at : at + 1000], collection)]
    return ids[::-1]


@pytest.fixture
def sidebar(shared_comfy_page: Any) -> Iterator[Sidebar]:
    yield Sidebar(shared_comfy_page)
    shared_comfy_page.page.unroute_all()
    shared_comfy_page.page.evaluate("() => document.querySelectorAll('dialog.fl-full').forEach((view) => view.close())")


@pytest.fixture
def three(sidebar: Sidebar) -> list[str]:
    """Three pictures in a collection of their own, listed in the sidebar; ids, newest first."""
    collection = f"sidebar {uuid.uuid4()}"
    store = sidebar.store()
    ids = fill(store, collection, ["a red fox", "a green frog", "a red lantern"])
    store.close()
    sidebar.look_at(collection)
    sidebar.expect_shown(ids)
    return ids


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
    sidebar.page.get_by_text("To train", exact=True).click()
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


INTERACTIONS = "SELECT kind, result_id FROM interaction WHERE image_id = ? ORDER BY kind"


def test_what_people_do_is_recorded_only_while_the_switch_is_on(sidebar: Sidebar, three: list[str]) -> None:
    """Off at first, so a saved copy leaves no trace; then on: saved once, run again with another seed, loaded again."""
    switch = "value => app.extensionManager.setting.set('FeedbackLoop.Interactions', value)"

    def save(image_id: str) -> None:
        sidebar.row(image_id).hover()
        with sidebar.page.expect_download() as download:
            sidebar.row(image_id).get_by_label("Save a copy").click()
        assert download.value.suggested_filename == f"feedback_{image_id}.png"

    save(three[0])
    sidebar.page.evaluate(switch, True)
    sidebar.comfy_page.poll(lambda: sidebar.server.get(f"{API}/settings")["interactions"], 30)
    save(three[1])
    sidebar.expect_rows([("saved", None)], INTERACTIONS, three[1])
    assert sidebar.rows_of(INTERACTIONS, three[0]) == []

    first, second = [run_with_seed(sidebar, seed) for seed in (1, 2)]
    sidebar.expect_rows([("regenerated", second)], INTERACTIONS, first)
    kept, larger = save_and_upscale(sidebar)
    sidebar.expect_rows([("upscaled", larger)], INTERACTIONS, kept)
    sidebar.page.evaluate(switch, False)
    sidebar.comfy_page.poll(lambda: not sidebar.server.get(f"{API}/settings")["interactions"], 30)
    run_with_seed(sidebar, 3)
    save(three[2])
    assert sidebar.rows_of(INTERACTIONS, three[2]) == []
    assert sidebar.rows_of(INTERACTIONS, second) == []


def save_and_upscale(sidebar: Sidebar) -> tuple[str, str]:
    """A run saves what it captures, another loads that file and makes it larger; ids of the two pictures."""
    made = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 24, "height": 24, "batch_size": 1, "color": 77}},
        "2": {"class_type": "FeedbackCapture", "inputs": {"images": ["1", 0], "collection": "kept"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"kept {uuid.uuid4()}"}},
    }
    outputs = sidebar.comfy_page.load_prompt(made).queue()["outputs"]
    scale = {"upscale_method": "bilinear", "width": 48, "height": 48, "crop": "disabled"}
    larger = {
        "1": {"class_type": "LoadImage", "inputs": {"image": f"{outputs['3']['images'][0]['filename']} [output]"}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], **scale}},
        "3": {"class_type": "FeedbackCapture", "inputs": {"images": ["2", 0], "collection": "kept"}},
    }
    again = sidebar.comfy_page.load_prompt(larger).queue()["outputs"]
    return outputs["2"]["feedback_images"][0], again["3"]["feedback_images"][0]


def run_with_seed(sidebar: Sidebar, seed: int) -> str:
    """Queues a graph that makes one picture from a seed; returns the id of what was captured."""
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 24, "height": 24, "batch_size": 1, "color": 8}},
        "2": {"class_type": "ImageAddNoise", "inputs": {"image": ["1", 0], "seed": seed, "strength": 0.5}},
        "3": {"class_type": "FeedbackCapture", "inputs": {"images": ["2", 0], "collection": "seeds"}},
    }
    sidebar.comfy_page.load_prompt(prompt)
    return sidebar.comfy_page.queue()["outputs"]["3"]["feedback_images"][0]


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
