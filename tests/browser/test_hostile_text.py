"""Whatever people write, in any field that there is, is text in every place of ours that shows it."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from feedback_loop.feedback.marks import Region, Tag
from feedback_loop.feedback.records import Comment, Generation, Rating
from feedback_loop.tests.browser.sidebar_page import API, Sidebar
from feedback_loop.tests.browser.test_gate import IN_VIEW, ramp

RUN = "window.hacked=(window.hacked||0)+1"
WAYS = [
    f'<img src=x onerror="{RUN}">',
    f'<svg onload="{RUN}"></svg>',
    f"</script><script>{RUN}</script>",
    f'<a href="javascript:{RUN}">a</a>',
    f"{{{{constructor.constructor('{RUN}')()}}}}",
]
INJECTED = "[onerror], [onload], [href^='javascript:'], img[src='x']"


def names(what: str) -> str:
    """All ways that fit into the 200 characters of a name, one of which tells where it stands."""
    return f"{what} {WAYS[0]}{WAYS[1]}"


TEXT = f"a fox {' '.join(WAYS)}"


def unharmed(page: Any) -> None:
    """Nothing ran, and nothing of the text became an element. Looked at once what would load has had a moment to."""
    page.wait_for_timeout(200)
    assert page.evaluate("() => window.hacked") is None
    assert page.locator(INJECTED).count() == 0


def said(sidebar: Sidebar) -> str:
    """A picture with hostile words in everything that can be said of it, by somebody of a hostile name; its id."""
    store, rater = sidebar.store(), names("rater")
    pixels = np.random.default_rng(9).integers(0, 255, (48, 64, 3), np.uint8)
    image = store.add_image(pixels, Generation(prompt=TEXT, seed="5"), names("collection"))
    store.add_rating(Rating(image, 4, rater, comment=TEXT))
    store.add_comment(Comment(image, TEXT, rater))
    store.add_tag(Tag(image, names("tag"), rater))
    store.add_region(Region(image, "rect", ((0.1, 0.1), (0.5, 0.5)), names("label"), rater, comment=TEXT))
    store.close()
    return image


def shown_large(view: Locator) -> None:
    """The large view of such a picture, or of one that has the prompt alone."""
    expect(view).to_be_visible()
    expect(view.locator(".fl-prompt")).to_contain_text(TEXT)
    expect(view.locator(".fl-words button")).to_have_text(TEXT.split())


def test_in_the_sidebar_and_its_large_view(sidebar: Sidebar) -> None:
    page = sidebar.page
    image = said(sidebar)
    sidebar.tab("Compare")
    sidebar.tab("Progress")
    expect(sidebar.element.locator(".fl-facts")).to_be_visible()
    sidebar.tab("Pictures")
    page.locator(".feedback-loop-tab-button").click()
    expect(sidebar.element).to_have_count(0)
    page.locator(".feedback-loop-tab-button").click()
    sidebar.more_filters()
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Rater", exact=True).select_option(names("rater"))
    page.get_by_label("Collection", exact=True).select_option(names("collection"))
    sidebar.expect_shown([image])
    expect(sidebar.row(image).locator(".fl-row-prompt")).to_have_text(TEXT)
    expect(sidebar.row(image).locator(".fl-row-facts")).to_contain_text(names("collection"))
    sidebar.row(image).locator("img").click()
    view = page.locator("dialog.fl-full")
    shown_large(view)
    expect(view.locator(".fl-comments")).to_contain_text(f"{names('rater')}: {TEXT}")
    expect(view.get_by_role("button", name=names("tag"))).to_be_visible()
    expect(view.locator(".fl-mark-list")).to_contain_text(names("label"))
    view.get_by_label("Your own tag").fill(names("mine"))
    page.keyboard.press("Enter")
    expect(view.get_by_role("button", name=names("mine"))).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    unharmed(page)


def test_in_a_message_and_in_the_status_of_the_large_view(sidebar: Sidebar) -> None:
    """A server's reason may repeat what it refused."""
    page, image = sidebar.page, said(sidebar)
    sidebar.look_at_everything()
    page.route("**/ratings", lambda route: route.fulfill(status=503, json={"error": f"Refused: {TEXT}."}))
    sidebar.star(image, 2).click()
    expect(page.locator(".p-toast").get_by_text(f"Refused: {TEXT}.").first).to_be_visible()
    sidebar.row(image).locator("img").click()
    page.keyboard.press("2")
    expect(page.locator("dialog.fl-full .fl-full-status")).to_contain_text(f"Refused: {TEXT}.")
    unharmed(page)


# The name of the rater is a setting, and shown among the filters.
RENAME = "name => app.extensionManager.setting.set('FeedbackLoop.Rater', name)"


@pytest.mark.parametrize("renderer", [False, True], ids=["classic", "vue"], indirect=True)
def test_in_the_nodes_that_show_pictures(renderer: Any) -> None:
    """Prompt, collection, the node's title and the rater's own name; judged by keys, and taken back."""
    page = renderer.page
    page.evaluate(RENAME, names("me"))
    # Of another colour each time: a picture that has four stars already loses them by the same key.
    image = {"width": 64, "height": 48, "batch_size": 2, "color": uuid.uuid4().int % 2**24}
    capture = {"images": ["1", 0], "collection": names("collection"), "positive": ["3", 0]}
    renderer.load_prompt(
        {
            "1": {"class_type": "EmptyImage", "inputs": image},
            "3": {"class_type": "PrimitiveString", "inputs": {"value": TEXT}},
            "2": {"class_type": "FeedbackCapture", "inputs": capture},
        }
    )
    page.evaluate(IN_VIEW.replace("FeedbackGate", "FeedbackCapture"))
    ids = renderer.queue()["outputs"]["2"]["feedback_images"]
    card = page.locator(f'.fl-card[data-image-id="{ids[0]}"]')
    expect(card).to_be_visible()
    card.focus()
    page.keyboard.press("4")
    rated = f"{API}/images/{ids[0]}"
    renderer.poll(lambda: [one["rater"] for one in renderer.server.get(rated)["ratings"]] == [names("me")], 60)
    page.keyboard.press(" ")
    shown_large(page.locator("dialog.fl-full"))
    page.keyboard.press("Escape")
    page.evaluate(RENAME, "me")
    unharmed(page)


@pytest.mark.parametrize("renderer", [False], ids=["classic"], indirect=True)
def test_in_what_waits_and_in_who_answered_it(renderer: Any) -> None:
    page, server = renderer.page, renderer.server
    gate = {"mode": "choose", "timeout": 0, "on_timeout": "skip", "without_client": "wait"}
    inputs = {"images": ["2", 0], "collection": names("collection"), "positive": ["60", 0], **gate}
    renderer.load_prompt(
        {
            **ramp(2),
            "60": {"class_type": "PrimitiveString", "inputs": {"value": TEXT}},
            "50": {"class_type": "FeedbackGate", "inputs": inputs},
        }
    )
    title = "title => { app.graph.nodes.find((one) => one.type === 'FeedbackGate').title = title }"
    page.evaluate(title, names("title"))
    page.evaluate(IN_VIEW)
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    try:
        page.get_by_role("button", name="A run waits for you").click()
        dialog = page.locator("dialog.fl-gate-dialog")
        expect(dialog.get_by_role("heading")).to_have_text(names("title"))
        expect(dialog.locator(".fl-card")).to_have_count(2)
        dialog.locator(".fl-card").first.focus()
        page.keyboard.press(" ")
        shown_large(page.locator("dialog.fl-full:not(.fl-gate-dialog)"))
        page.keyboard.press("Escape")
        page.route("**/gates/*", lambda route: route.fulfill(status=503, json={"error": f"Refused: {TEXT}."}))
        dialog.locator(".fl-card").first.locator("img").click()
        dialog.get_by_role("button", name="Go on with picture 1").click()
        expect(page.get_by_text(f"Refused: {TEXT}.").first).to_be_visible()
        page.unroute_all()
        (asked,) = server.get(f"{API}/gates")["gates"]
        answer = {"action": "choose", "images": asked["images"][:1], "comment": TEXT, "rater": names("rater")}
        server.post(f"{API}/gates/{asked['key']}", answer)
        server.wait(asked["prompt_id"])
        expect(dialog).to_have_count(0)
        ended = page.locator(".fl-gate").get_by_text(f"The run went on: chosen by {names('rater')}.")
        expect(ended).to_be_visible()
        unharmed(page)
    finally:
        page.unroute_all()
        server.post("/interrupt", {})
