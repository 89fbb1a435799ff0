"""A picture's rounds in the browser: the tree, taking a candidate by keys, going on from any of its pictures."""

from __future__ import annotations

import uuid

import pytest
from playwright.sync_api import expect

from feedback_loop.tests.browser.sidebar_page import API, Sidebar

REFINE = {
    "positive": ["2", 0], "negative": ["3", 0], "vae": ["1", 2], "model": ["1", 0], "mask": ["5", 0], "steps": 2,
    "cfg": 2.0, "sampler_name": "euler", "scheduler": "sgm_uniform", "denoise": 1.0, "candidates": 2, "clip": ["1", 1],
}  # fmt: skip


@pytest.fixture
def family(sidebar: Sidebar) -> tuple[list[str], list[str]]:
    """(root, its two candidates, the two of the first one's round), ids of the rounds: two real runs."""
    server, collection = sidebar.comfy_page.server, f"family {uuid.uuid4()}"
    colour = uuid.uuid4().int % 2**24
    prompt = {
        "1": {"class_type": "FeedbackDemoModel", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "red star", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": colour}},
        "5": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}},
        "6": {"class_type": "FeedbackRefineRegion", "inputs": {
            **REFINE, "images": ["4", 0], "seed": 1, "comment": "<b>larger</b> star", "collection": collection}},
        "7": {"class_type": "FeedbackRefineRegion", "inputs": {
            **REFINE, "images": ["6", 0], "seed": 9, "comment": "no text", "collection": collection}},
    }  # fmt: skip
    server.run(prompt)
    newest = server.get(f"{API}/images?collection={collection.replace(' ', '%20')}")["items"][0]["id"]
    tree = server.get(f"{API}/images/{newest}/family")
    first, second = tree["rounds"]
    ids = [tree["root"], *(one["image_id"] for round_ in (first, second) for one in round_["candidates"])]
    return ids, [first["id"], second["id"]]


def opened(sidebar: Sidebar, image_id: str):
    sidebar.page.evaluate(
        "async (id) => (await import('/extensions/feedback_loop/js/family.js')).openFamily(id)", image_id
    )
    dialog = sidebar.page.locator("dialog.fl-family")
    expect(dialog).to_be_visible()
    return dialog


def test_a_family_shows_every_picture_and_what_was_said_as_text(sidebar: Sidebar, family) -> None:
    ids, _ = family
    dialog = opened(sidebar, ids[3])
    expect(dialog.get_by_role("treeitem")).to_have_count(5)
    expect(dialog.get_by_text("“<b>larger</b> star”")).to_be_visible()
    expect(dialog.locator(f'[data-image-id="{ids[3]}"]')).to_be_focused()
    # the second round began with the first candidate, so that one was gone on with
    expect(dialog.locator(f'[data-image-id="{ids[1]}"]')).to_contain_text("gone on with")
    assert sidebar.comfy_page.errors == []


def test_a_candidate_is_taken_by_keys_and_the_view_closes_by_escape(sidebar: Sidebar, family) -> None:
    ids, rounds = family
    dialog = opened(sidebar, ids[3])
    sidebar.page.keyboard.press("ArrowDown")
    expect(dialog.locator(f'[data-image-id="{ids[4]}"]')).to_be_focused()
    sidebar.page.keyboard.press("Enter")
    expect(dialog.locator(f'[data-image-id="{ids[4]}"]')).to_contain_text("chosen")
    tree = sidebar.comfy_page.server.get(f"{API}/images/{ids[0]}/family")
    assert {one["id"]: one["accepted"] for one in tree["rounds"]}[rounds[1]] == ids[4]
    sidebar.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_any_picture_of_a_family_goes_into_the_graph_to_branch_from(sidebar: Sidebar, family) -> None:
    ids, _ = family
    opened(sidebar, ids[2])
    sidebar.page.keyboard.press("g")
    expect(sidebar.page.locator("dialog.fl-family")).to_have_count(0)
    loaders = (
        "() => app.graph.nodes.filter((node) => node.comfyClass === 'LoadImage').map((node) => node.widgets[0].value)"
    )
    assert len(sidebar.page.evaluate(loaders)) == 1


def test_the_sidebars_list_opens_a_family_by_its_key(sidebar: Sidebar, three: list[str]) -> None:
    sidebar.row(three[0]).click()
    sidebar.page.keyboard.press("r")
    dialog = sidebar.page.locator("dialog.fl-family")
    expect(dialog.get_by_text("Nothing was refined from this picture yet.")).to_be_visible()
    sidebar.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


COMMENTS = """() => {
    const value = (node, name) => node.widgets.find((one) => one.name === name)?.value;
    const ours = app.graph.nodes.filter((node) => node.comfyClass.startsWith('Feedback'));
    return Object.fromEntries(ours.map((node) => [node.comfyClass, [value(node, 'comment'), value(node, 'earlier')]]));
}"""


def test_what_was_said_of_a_picture_becomes_the_next_rounds_comment(sidebar: Sidebar, family) -> None:
    """By the key and by the button; what stood in the node is an earlier comment from then on. A comment that comes
    through a link is left alone."""
    ids, _ = family
    server, page = sidebar.comfy_page.server, sidebar.page
    conditioning = {"strength": 1.0, "mode": "everywhere", "earlier": "red", "comment": "less clutter"}
    places = {"labels": "", "points": "circle", "radius": 10.0, "grow": 0, "feather": 0.0, "collection": ""}
    sidebar.comfy_page.load_prompt({
        "1": {"class_type": "FeedbackTextConditioning", "inputs": conditioning},
        "2": {"class_type": "FeedbackRegionMask", "inputs": places},
        "3": {"class_type": "FeedbackRefineRegion", "inputs": {"comment": ["2", 1]}},
    })  # fmt: skip
    page.wait_for_function("() => app.graph.nodes.length === 3")
    dialog = opened(sidebar, ids[3])
    page.keyboard.press("c")
    expect(dialog.get_by_role("status")).to_contain_text("Nothing was written about this picture yet")
    said = "<i>brighter</i>, no text"
    server.post(f"{API}/comments", {"image_id": ids[3], "text": "larger", "rater": "me"})
    server.post(f"{API}/comments", {"image_id": ids[3], "text": said, "rater": "me"})
    server.post(f"{API}/comments", {"image_id": ids[3], "text": "somebody else's", "rater": "ann"})
    page.keyboard.press("c")
    expect(dialog.get_by_role("status")).to_have_text(f"“{said}” is now the comment of: Say what to change")
    assert page.evaluate(COMMENTS)["FeedbackTextConditioning"] == [said, "red\nless clutter"]
    place = {"shape": "point", "geometry": [[0.5, 0.5]], "label": "artifact", "rater": "me", "comment": "a star"}
    server.post(f"{API}/regions", {"image_id": ids[4], **place})
    page.keyboard.press("ArrowDown")
    dialog.get_by_role("button", name="Carry its comment on").click()
    expect(dialog.get_by_role("status")).to_contain_text("“a star”")
    found = page.evaluate(COMMENTS)
    assert found["FeedbackTextConditioning"] == ["a star", f"red\nless clutter\n{said}"]
    assert found["FeedbackRefineRegion"][0] == ""
    sidebar.comfy_page.load_prompt({"1": {"class_type": "EmptyImage", "inputs": {}}})
    page.wait_for_function("() => app.graph.nodes.length === 1")
    dialog.get_by_role("button", name="Carry its comment on").click()
    expect(dialog.get_by_role("status")).to_contain_text("No node of the open graph takes a comment")
    assert sidebar.comfy_page.errors == []
