"""Every way to judge that the capture node offers, by pointer and by keys, in both renderers; and what is stored."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from feedback_loop.tests.browser.captured import API, Captured


def test_a_thumb_is_a_rating_of_one_or_zero_and_the_same_thumb_again_clears(captured: Captured) -> None:
    captured.choose_mode("thumbs")
    up = captured.card(1).get_by_role("button", name="thumb up")
    up.click()
    captured.expect_stored(lambda: captured.ratings(1), [(1, 1)])
    expect(up).to_have_attribute("aria-pressed", "true")
    captured.card(1).focus()
    captured.press("1")
    captured.expect_stored(lambda: captured.ratings(1), [(0, 1)])
    captured.press("1")
    captured.expect_stored(lambda: captured.ratings(1), [])
    captured.press("u")  # Undo gives back what the last key cleared.
    captured.expect_stored(lambda: captured.ratings(1), [(0, 1)])
    # The large view begins with the first picture that has none, and has thumbs too.
    captured.view.get_by_role("button", name="Large").click()
    captured.press("2")
    captured.expect_stored(lambda: captured.ratings(0), [(1, 1)])


def test_stars_and_thumbs_show_the_same_rating(captured: Captured) -> None:
    captured.card(0).focus()
    captured.press("5")
    captured.expect_stored(lambda: captured.ratings(0), [(5, 5)])
    captured.choose_mode("thumbs")
    expect(captured.card(0).get_by_role("button", name="thumb up")).to_have_attribute("aria-pressed", "true")


def test_the_best_picture_wins_against_each_other_one_and_another_choice_replaces_it(captured: Captured) -> None:
    captured.choose_mode("best")
    captured.card(2).locator("img").click()
    captured.expect_stored(captured.wins, {(2, 0), (2, 1), (2, 3)})
    expect(captured.card(2).get_by_role("button")).to_have_text("3Best")
    captured.card(0).focus()
    captured.press("2")  # the number of the second picture
    captured.expect_stored(captured.wins, {(1, 0), (1, 2), (1, 3)})
    captured.press("u")
    captured.expect_stored(captured.wins, {(2, 0), (2, 1), (2, 3)})
    expect(captured.card(2).get_by_role("button")).to_have_attribute("aria-pressed", "true")


def test_pictures_clicked_in_order_are_a_ranking_and_the_last_place_follows(captured: Captured) -> None:
    captured.choose_mode("rank")
    for index in (3, 0, 1):
        captured.card(index).locator("img").click()
    order = [captured.ids[index] for index in (3, 0, 1, 2)]

    def rankings() -> list[list[str]]:
        return [one["image_ids"] for one in captured.marks(2)["rankings"]]

    captured.expect_stored(rankings, [order])
    expect(captured.card(2).get_by_role("button")).to_have_text("3Place 4")
    # By keys alone: the order begins anew, a place is taken back before it is stored, two are given and kept; the order
    # before no longer counts.
    captured.card(0).focus()
    captured.press("ArrowRight", "Enter", "4", "u", "1")
    expect(captured.card(1).get_by_role("button")).to_have_text("2Place 1")
    captured.view.get_by_role("button", name="Keep order").press("Enter")
    captured.expect_stored(rankings, [])
    assert [one["image_ids"] for one in captured.marks(0)["rankings"]] == [[captured.ids[1], captured.ids[0]]]
    captured.card(0).focus()
    captured.press("u")
    captured.expect_stored(rankings, [order])


def test_arrow_keys_answer_a_pair_and_back_answers_it_anew(captured: Captured) -> None:
    captured.choose_mode("compare")
    pair = captured.view.locator(".fl-ab-image")
    expect(pair.first).to_have_attribute("data-image-id", re.compile("|".join(captured.ids)))
    left, right = (captured.ids.index(str(side.get_attribute("data-image-id"))) for side in pair.all())
    captured.view.locator(".fl-ab").focus()
    captured.press("ArrowRight")
    captured.expect_stored(captured.wins, {(right, left)})
    expect(captured.view.locator(".fl-ab .fl-count")).to_have_text("1 pair compared")
    said = captured.marks(left)["comparisons"]
    assert [(one["left"], one["right"]) for one in said] == [(captured.ids[left], captured.ids[right])]
    assert said[0]["policy"], "how the pair was proposed is stored with it"
    captured.press("b")
    expect(captured.view.get_by_role("button", name="Right")).to_have_attribute("aria-pressed", "true")
    captured.press("ArrowLeft")
    captured.expect_stored(captured.wins, {(left, right)})


def test_both_bad_and_cannot_tell_have_keys_and_the_pair_can_be_shown_large(captured: Captured) -> None:
    captured.choose_mode("compare")
    captured.view.locator(".fl-ab").focus()
    expect(captured.view.locator(".fl-ab-image").first).to_have_attribute("src", re.compile(API))
    captured.press(" ")
    expect(captured.large).to_be_visible()
    captured.press("ArrowUp")
    expect(captured.large.locator(".fl-count")).to_have_text("1 pair compared")
    captured.press("ArrowDown")
    expect(captured.large.locator(".fl-count")).to_have_text("2 pairs compared")
    captured.press("Escape")
    expect(captured.large).to_have_count(0)
    said = {one["id"]: one["winner"] for index in range(4) for one in captured.marks(index)["comparisons"]}
    assert sorted(said.values()) == ["both_bad", "tie"]


def test_the_way_to_judge_is_kept_in_the_workflow(captured: Captured) -> None:
    captured.choose_mode("rank")
    saved = captured.page.evaluate("async () => (await window.app.graphToPrompt()).workflow")
    captured.choose_mode("stars")
    captured.comfy_page.load(saved)
    captured.show()
    expect(captured.mode("rank")).to_have_attribute("aria-checked", "true")


def test_modes_are_reached_and_chosen_by_keys_alone(captured: Captured) -> None:
    captured.mode("stars").focus()
    captured.press("ArrowRight", "ArrowRight", "Enter")
    expect(captured.mode("best")).to_have_attribute("aria-checked", "true")
    expect(captured.mode("best")).to_be_focused()
    outline = captured.mode("best").evaluate("node => getComputedStyle(node).outlineStyle")
    assert outline == "solid"  # The focus is seen.
    for _ in range(20):  # Tab leads on to the pictures, past the other buttons.
        captured.press("Tab")
        if captured.page.evaluate("() => document.activeElement.classList.contains('fl-card')"):
            break
    captured.press("ArrowRight", "Enter")
    captured.expect_stored(captured.wins, {(1, 0), (1, 2), (1, 3)})
