"""Stars in the browser, in both renderers: what a click or a key does, and where the rating ends up."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

API = "/feedback_loop/v1"
expect.set_options(timeout=60_000)  # the machine may be busy with other work

# The frontend mounts a widget only when its node is in view.
IN_VIEW = """() => {
  const node = app.graph.nodes.find((one) => one.type === "FeedbackCapture");
  node.pos = [500, 120];
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
}"""


class Capture:
    """A graph with one FeedbackCapture node, open in the browser, that has recorded `ids`, newest first."""

    def __init__(self, comfy_page: Any, count: int) -> None:
        self.comfy_page, self.page, self.server = comfy_page, comfy_page.page, comfy_page.server
        self.collection = f"browser {uuid.uuid4()}"
        image = {"width": 48, "height": 48, "batch_size": count, "color": 0xAA5522}
        self.prompt = {
            "1": {"class_type": "EmptyImage", "inputs": image},
            "2": {"class_type": "FeedbackCapture", "inputs": {"images": ["1", 0], "collection": self.collection}},
        }
        comfy_page.load_prompt(self.prompt)
        self.page.evaluate(IN_VIEW)
        self.run()

    def run(self) -> None:
        self.ids = self.comfy_page.queue()["outputs"]["2"]["feedback_images"][::-1]
        expect(self.page.locator(".fl-card")).to_have_count(len(self.ids))

    def card(self, image_id: str) -> Locator:
        return self.page.locator(f'.fl-card[data-image-id="{image_id}"]')

    def star(self, image_id: str, stars: int) -> Locator:
        return self.card(image_id).locator(f'.fl-star[data-stars="{stars}"]')

    def expect_stars(self, image_id: str, stars: int) -> None:
        expect(self.card(image_id).locator(".fl-lit")).to_have_count(stars)

    def stored(self, image_id: str) -> list[tuple[float, str, str]]:
        """(value, rater, axis) of the ratings that count, through the HTTP API."""
        ratings = self.server.get(f"{API}/images/{image_id}")["ratings"]
        return [(rating["value"], rating["rater"], rating["axis"]) for rating in ratings]

    def expect_stored(self, image_id: str, ratings: list[tuple[float, str, str]]) -> None:
        self.comfy_page.poll(lambda: self.stored(image_id) == ratings, 10)


def in_sqlite(server: Any, image_id: str) -> list[tuple[float, float, str]]:
    """(raw, value, rater) of every rating ever given to the picture, straight from the database file."""
    path = server.base_directory / "user" / "__feedback_loop" / "feedback.sqlite3"
    query = (
        "SELECT raw, value, rater.name FROM rating JOIN judgement USING (id) JOIN rater ON rater.id = rater_id "
        "WHERE image_id = ? ORDER BY judgement.revision"
    )
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    return connection.execute(query, [image_id]).fetchall()


@pytest.fixture
def capture(renderer: Any) -> Iterator[Capture]:
    renderer.page.mouse.move(5, 500)
    yield Capture(renderer, 4)
    renderer.page.unroute_all()
    renderer.page.evaluate("() => document.querySelectorAll('dialog.fl-full').forEach((view) => view.close())")


def test_a_clicked_star_is_in_the_database_and_shown_again_after_a_reload(capture: Capture) -> None:
    image_id = capture.ids[1]
    capture.star(image_id, 4).click()
    capture.expect_stars(image_id, 4)
    capture.expect_stored(image_id, [(4, "me", "overall")])
    # Four of one to five stars is three quarters of the scale.
    assert in_sqlite(capture.server, image_id) == [(4.0, 0.75, "me")]
    assert [capture.stored(other) for other in capture.ids if other != image_id] == [[], [], []]

    capture.comfy_page.open().load_prompt(capture.prompt)
    capture.page.evaluate(IN_VIEW)
    capture.expect_stars(image_id, 4)
    assert capture.comfy_page.errors == []


def test_another_star_replaces_the_first_and_the_same_star_again_clears(capture: Capture) -> None:
    image_id = capture.ids[0]
    capture.star(image_id, 2).click()
    capture.star(image_id, 5).click()
    capture.expect_stars(image_id, 5)
    capture.expect_stored(image_id, [(5, "me", "overall")])
    capture.star(image_id, 5).click()
    capture.expect_stars(image_id, 0)
    # Nothing counts any more, neither the five nor the two before it; both are still in the record.
    capture.expect_stored(image_id, [])
    assert [raw for raw, _, _ in in_sqlite(capture.server, image_id)] == [2.0, 5.0]


def test_keys_rate_the_picture_under_the_pointer_and_the_same_key_clears(capture: Capture) -> None:
    image_id = capture.ids[2]
    capture.card(image_id).locator("img").hover()
    capture.page.keyboard.press("3")
    capture.expect_stars(image_id, 3)
    capture.expect_stored(image_id, [(3, "me", "overall")])
    capture.page.keyboard.press("3")
    capture.expect_stars(image_id, 0)
    capture.expect_stored(image_id, [])


def test_arrow_keys_walk_through_the_pictures_and_keys_rate_the_focused_one(capture: Capture) -> None:
    first, second = capture.ids[:2]
    capture.card(first).focus()
    capture.page.keyboard.press("ArrowRight")
    expect(capture.card(second)).to_be_focused()
    capture.page.keyboard.press("1")
    capture.expect_stored(second, [(1, "me", "overall")])
    assert capture.stored(first) == []
    # Tab leads from the picture to its stars, where Enter gives the one that has the focus.
    capture.page.keyboard.press("Tab")
    capture.page.keyboard.press("ArrowRight")
    capture.page.keyboard.press("Enter")
    capture.expect_stored(second, [(2, "me", "overall")])


def test_keys_do_nothing_while_no_picture_has_the_focus_or_somebody_types(capture: Capture) -> None:
    image_id = capture.ids[0]
    capture.card(image_id).locator("img").hover()
    capture.page.mouse.move(5, 500)
    capture.page.keyboard.press("5")
    capture.page.evaluate(
        "() => { const i = document.createElement('input'); i.id = 'typing'; document.body.append(i); i.focus() }"
    )
    capture.card(image_id).locator("img").hover()
    capture.page.keyboard.press("5")
    assert capture.page.locator("#typing").input_value() == "5"
    capture.expect_stars(image_id, 0)
    assert capture.stored(image_id) == []


def test_delete_on_a_picture_does_not_delete_the_node(capture: Capture) -> None:
    capture.star(capture.ids[0], 1).click()
    capture.page.keyboard.press("Delete")
    capture.page.keyboard.press("Backspace")
    assert capture.page.evaluate("() => window.app.graph.nodes.length") == 2


def test_a_rating_that_cannot_be_stored_goes_back_and_says_why(capture: Capture) -> None:
    image_id = capture.ids[0]
    capture.star(image_id, 2).click()
    capture.expect_stored(image_id, [(2, "me", "overall")])
    answer = {"status": 503, "json": {"error": "The disk is full."}}
    capture.page.route("**/ratings", lambda route: route.fulfill(**answer))
    capture.star(image_id, 5).click()
    capture.expect_stars(image_id, 2)
    expect(capture.page.get_by_text("The disk is full.")).to_be_visible()
    assert capture.stored(image_id) == [(2, "me", "overall")]


def test_a_connection_lost_after_the_server_stored_a_rating_leaves_one_rating(capture: Capture) -> None:
    image_id = capture.ids[0]
    attempts: list[str] = []

    def lose_the_first_answer(route: Any) -> None:
        attempts.append(route.request.headers["idempotency-key"])
        if len(attempts) > 1:
            return route.continue_()
        route.fetch()  # The server gets it and stores it ...
        route.abort()  # ... but the answer never arrives.

    capture.page.route("**/ratings", lose_the_first_answer)
    capture.star(image_id, 4).click()
    capture.comfy_page.poll(lambda: len(attempts) == 2, 10)
    capture.expect_stars(image_id, 4)
    assert attempts[0] == attempts[1]
    assert len(in_sqlite(capture.server, image_id)) == 1


def test_the_large_view_rates_with_a_key_and_goes_on_to_the_next_picture(capture: Capture) -> None:
    first, second = capture.ids[:2]
    capture.card(first).focus()
    capture.page.keyboard.press(" ")
    view = capture.page.locator("dialog.fl-full")
    expect(view).to_be_visible()
    capture.page.keyboard.press("5")
    expect(view.locator(".fl-count")).to_have_text("2 of 4")
    capture.page.keyboard.press("2")
    capture.page.keyboard.press("Escape")
    expect(view).to_have_count(0)
    capture.expect_stored(first, [(5, "me", "overall")])
    capture.expect_stored(second, [(2, "me", "overall")])
    capture.expect_stars(first, 5)


def test_unrated_hides_what_is_rated(capture: Capture) -> None:
    capture.star(capture.ids[0], 3).click()
    capture.expect_stored(capture.ids[0], [(3, "me", "overall")])
    capture.page.get_by_role("button", name="Unrated").click()
    expect(capture.card(capture.ids[0])).to_have_count(0)
    expect(capture.page.locator(".fl-card")).to_have_count(3)
    expect(capture.page.locator(".fl-capture .fl-count")).to_have_text("1 of 4 rated")


def test_text_from_a_prompt_is_shown_as_text(renderer: Any) -> None:
    collection = f"browser {uuid.uuid4()}"
    hostile = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 48, "height": 48, "batch_size": 1, "color": 3}},
        "3": {"class_type": "PrimitiveString", "inputs": {"value": hostile}},
        "2": {
            "class_type": "FeedbackCapture",
            "inputs": {"images": ["1", 0], "collection": collection, "positive": ["3", 0]},
        },
    }
    renderer.load_prompt(prompt).page.evaluate(IN_VIEW)
    renderer.queue()
    card = renderer.page.locator(".fl-card")
    expect(card).to_have_attribute("aria-label", f"{hostile}: not rated")
    card.focus()
    renderer.page.keyboard.press(" ")
    expect(renderer.page.locator(".fl-prompt")).to_have_text(hostile)
    assert renderer.page.evaluate("() => window.hacked") is None
    renderer.page.keyboard.press("Escape")


def test_the_view_is_no_part_of_the_saved_workflow_or_of_the_prompt(capture: Capture) -> None:
    capture.star(capture.ids[0], 3).click()
    capture.expect_stored(capture.ids[0], [(3, "me", "overall")])
    saved = capture.page.evaluate("async () => await window.app.graphToPrompt()")
    assert set(saved["output"]["2"]["inputs"]) == {"images", "collection"}
    (node,) = [node for node in saved["workflow"]["nodes"] if node["type"] == "FeedbackCapture"]
    assert node["widgets_values"] == [capture.collection]
