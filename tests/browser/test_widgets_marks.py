"""The large view: marks on the picture and on words, tags, comments; by pointer and by keys; and what is stored."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from feedback_loop.tests.browser.captured import PROMPT, Captured


def shapes(captured: Captured, index: int = 0) -> list[tuple[str, str, list[list[float]]]]:
    return [(one["shape"], one["label"], one["geometry"]) for one in captured.marks(index)["regions"]]


def grey(mask: str) -> np.ndarray:
    """A mask as it is stored: an 8-bit grey PNG in base64."""
    image = Image.open(io.BytesIO(base64.b64decode(mask)))
    assert image.mode == "L"
    return np.asarray(image)


def test_a_click_marks_a_point_and_a_drag_a_box_in_fractions_of_the_picture(captured: Captured) -> None:
    captured.open_large()
    captured.drag((0.25, 0.5), (0.25, 0.5))
    captured.large.get_by_role("radio", name="watermark").click()
    captured.drag((0.75, 0.9), (0.5, 0.6))  # from the lower right to the upper left
    captured.expect_stored(lambda: [shape for shape, _, _ in shapes(captured)], ["point", "rect"])
    (_, artifact, point), (_, watermark, corners) = shapes(captured)
    assert (artifact, watermark) == ("artifact", "watermark")
    # The stage is several hundred CSS pixels wide, so half a percent is more than rounding to whole ones costs.
    assert np.allclose(point, [(0.25, 0.5)], atol=0.005)
    assert np.allclose(corners, [(0.5, 0.6), (0.75, 0.9)], atol=0.005)
    expect(captured.large.locator(".fl-mark-list li")).to_have_count(2)
    expect(captured.large.locator(".fl-shapes polygon")).to_have_count(1)
    captured.press("ArrowRight")  # The pointer leaves the arrow keys to walking.
    expect(captured.large.locator(".fl-count")).to_have_text("2 of 4")


def test_the_brush_stores_a_grey_mask_of_the_pictures_size(captured: Captured) -> None:
    captured.open_large()
    captured.large.get_by_role("radio", name="Brush").click()
    captured.drag((0.25, 0.5), (0.75, 0.5))
    captured.expect_stored(lambda: shapes(captured), [("mask", "artifact", [])])
    mask = grey(captured.marks()["regions"][0]["mask"])
    # 64 x 48 pictures; the brush is 8 % of the width, 5 pixels: the stroke covers row 24, and ten rows away is nothing.
    assert mask.shape == (48, 64)
    assert mask[24, 20:44].min() == 255
    assert mask[:14].max() == mask[34:].max() == 0
    # What is stored is what is seen: the mask lies over the picture in the label's colour.
    painted = "canvas => canvas.getContext('2d').getImageData(32, 24, 1, 1).data[3]"
    captured.comfy_page.poll(lambda: captured.large.locator(".fl-masks").evaluate(painted), 30)


def test_marks_are_made_by_keys_alone(captured: Captured) -> None:
    captured.open_large()
    for _ in range(30):
        captured.press("Tab")
        if captured.page.evaluate("() => document.activeElement.classList.contains('fl-stage')"):
            break
    expect(captured.stage).to_be_focused()
    expect(captured.stage.locator(".fl-cross")).to_be_visible()
    # From the middle: five steps of .02 to the left, one of .1 up.
    captured.press(*["ArrowLeft"] * 5, "Shift+ArrowUp", "Enter")
    captured.press("Shift+Enter", "Shift+ArrowRight", "Shift+ArrowDown", "Enter")
    # The cross stands at (.4, .4) for the point; the box goes on from there to (.5, .5).
    box = ("rect", "artifact", [[0.4, 0.4], [0.5, 0.5]])
    captured.expect_stored(lambda: shapes(captured), [("point", "artifact", [[0.4, 0.4]]), box])
    captured.press("u", "u")
    captured.expect_stored(lambda: shapes(captured), [])
    captured.press("5")  # The digits rate here too, and go on.
    captured.expect_stored(captured.ratings, [(5, 5)])
    expect(captured.large.locator(".fl-count")).to_have_text("2 of 4")


def test_a_mark_is_taken_back_by_its_button_and_given_again_by_undo(captured: Captured) -> None:
    captured.open_large()
    captured.drag((0.5, 0.5), (0.5, 0.5))
    captured.expect_stored(lambda: len(shapes(captured)), 1)
    captured.large.get_by_role("button", name="Take back: artifact, point").press("Enter")
    captured.expect_stored(lambda: len(shapes(captured)), 0)
    captured.stage.focus()
    captured.press("u")
    captured.expect_stored(lambda: len(shapes(captured)), 1)
    expect(captured.large.locator(".fl-number")).to_have_count(1)


def test_words_of_the_prompt_are_marked_relabelled_and_cleared(captured: Captured) -> None:
    words = captured.open_large().locator(".fl-words")
    expect(words.locator("button")).to_have_text(PROMPT.split())

    def marked() -> list[tuple[int, str, str]]:
        return [(one["word_index"], one["word"], one["label"]) for one in captured.marks()["word_marks"]]

    words.get_by_role("button", name="fox").click()
    captured.expect_stored(marked, [(2, "fox", "misaligned")])
    captured.large.get_by_role("radio", name="missing").click()
    words.get_by_role("button", name="fox").focus()
    captured.press("Enter", "ArrowLeft", "ArrowLeft", "Enter")
    captured.expect_stored(marked, [(2, "fox", "missing"), (0, "a", "missing")])
    captured.press("Enter")
    captured.expect_stored(marked, [(2, "fox", "missing")])


def test_tags_are_clicked_or_typed_and_hostile_ones_are_text(captured: Captured) -> None:
    hostile = '<img src=x onerror="window.hacked=1">'
    captured.open_large()

    def tags() -> list[str]:
        return [one["tag"] for one in captured.marks()["tags"]]

    captured.large.get_by_role("button", name="unwanted artifact").click()
    captured.expect_stored(tags, ["unwanted artifact"])
    captured.large.get_by_label("Your own tag").fill(hostile)
    captured.press("Enter")
    captured.expect_stored(tags, ["unwanted artifact", hostile])
    expect(captured.large.get_by_role("button", name=hostile)).to_have_attribute("aria-pressed", "true")
    captured.large.get_by_role("button", name="unwanted artifact").click()
    captured.expect_stored(tags, [hostile])
    captured.press("ArrowRight")  # A tag of one's own is offered for every picture.
    expect(captured.large.get_by_role("button", name=hostile)).to_have_attribute("aria-pressed", "false")
    assert captured.page.evaluate("() => window.hacked") is None


def test_a_comment_is_written_by_keys_alone_and_one_left_in_the_field_is_not_lost(captured: Captured) -> None:
    captured.card(0).focus()
    captured.press("t")
    expect(captured.large.get_by_label("Comment", exact=True)).to_be_focused()
    captured.page.keyboard.type("two 5-legged <b>foxes</b>")
    captured.press("Shift+Enter")
    captured.page.keyboard.type("bright, though")
    captured.press("Enter")

    def comments() -> list[str]:
        return [one["text"] for one in captured.marks()["comments"]]

    captured.expect_stored(comments, ["two 5-legged <b>foxes</b>\nbright, though"])
    expect(captured.large.locator(".fl-comments")).to_contain_text("<b>foxes</b>")
    captured.page.keyboard.type("one more")
    captured.press("Escape")
    expect(captured.large).to_have_count(0)
    captured.expect_stored(lambda: comments()[1:], ["one more"])
    assert captured.ratings() == []  # The 5 was text.
    expect(captured.card(0).locator(".fl-badge")).to_have_text("2")


def test_a_mark_that_cannot_be_stored_goes_away_and_the_view_says_why(captured: Captured) -> None:
    captured.open_large()
    answer = {"status": 503, "json": {"error": "The disk is full."}}
    captured.page.route("**/regions", lambda route: route.fulfill(**answer))
    captured.drag((0.5, 0.5), (0.5, 0.5))
    expect(captured.large.locator(".fl-full-status")).to_have_text("The mark was not stored: The disk is full.")
    expect(captured.large.locator(".fl-number")).to_have_count(0)
    assert shapes(captured) == []


def test_what_was_said_before_is_shown_when_the_page_is_opened_again(captured: Captured) -> None:
    """And a key that the user gave to one of our commands works: keys are read on loading, so it is tested here."""
    captured.choose_mode("best")
    captured.card(1).locator("img").click()
    captured.expect_stored(captured.wins, {(1, 0), (1, 2), (1, 3)})
    captured.choose_mode("stars")
    captured.open_large()
    captured.press("4", "ArrowLeft")
    captured.drag((0.5, 0.5), (0.5, 0.5))
    captured.large.get_by_role("button", name="fox").click()
    captured.large.get_by_role("button", name="high quality").click()
    captured.expect_stored(lambda: sum(len(marks) for marks in captured.marks().values()), 4)  # and one comparison
    binding = {"commandId": "FeedbackLoop.Zoom", "combo": {"key": "i", "ctrl": False, "alt": False, "shift": False}}
    captured.server.post("/settings", {"Comfy.Keybinding.NewBindings": [binding]})

    captured.reopen()
    expect(captured.card(0).locator(".fl-lit")).to_have_count(4)
    expect(captured.card(0).locator(".fl-badge")).to_have_text("3")
    captured.choose_mode("best")
    expect(captured.card(1).get_by_role("button")).to_have_attribute("aria-pressed", "true")
    captured.choose_mode("stars")
    captured.card(0).focus()
    captured.press("i")
    expect(captured.large.locator(".fl-number")).to_have_count(1)
    expect(captured.large.get_by_role("button", name="fox")).to_have_attribute("aria-pressed", "true")
    expect(captured.large.get_by_role("button", name="high quality")).to_have_attribute("aria-pressed", "true")
    captured.press("i")
    expect(captured.large).to_have_count(0)
    captured.server.post("/settings", {"Comfy.Keybinding.NewBindings": []})
    assert captured.comfy_page.errors == []
