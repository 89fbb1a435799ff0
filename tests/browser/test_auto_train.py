"""The versions in a FeedbackAutoTrain node: what is listed, back by a click and by its key, and the other buttons."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from feedback_loop.tests.browser.conftest import ComfyPage
from feedback_loop.training import versions
from feedback_loop.training.versions import Index, Round, Version

LOWER_END_IN_VIEW = """() => {
  const [node] = app.graph.nodes;
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  node.pos = [600, 960 - node.size[1]];
  app.canvas.setDirty(true, true);
}"""
HOSTILE = "it got <img src=x onerror=alert(1)> 80% of 30 votes"


@pytest.fixture
def folder(renderer: ComfyPage) -> Path:
    """Two promoted versions and a third that is being compared, under a name of their own."""
    where = Path(renderer.server.base_directory) / "user" / "__feedback_loop" / "auto_train" / f"auto {uuid.uuid4()}"
    index = Index()
    for number in (1, 2, 3):
        version = Version(number, f"auto_{number:05}.safetensors", "", "2026-01-31T12:00:00+00:00", 50 * number, {})
        index = versions.trained(versions.begun(index, Round({}, {})), version, 1)
        index = index if number == 3 else versions.promoted(index, HOSTILE)
    versions.change(where, lambda _: index)
    return where


@pytest.fixture
def view(renderer: ComfyPage, folder: Path) -> Locator:
    renderer.load_prompt({"1": {"class_type": "FeedbackAutoTrain", "inputs": {"name": folder.name}}})
    view = renderer.page.locator(".fl-auto")
    expect(view.get_by_role("listitem")).to_have_count(4)
    renderer.page.evaluate(LOWER_END_IN_VIEW)
    return view


def test_versions_are_listed_with_what_became_of_them_as_text(renderer: ComfyPage, view: Locator) -> None:
    expect(view.get_by_role("status")).to_have_text("Version 2 is in use. Version 3 is being compared: 0 votes so far.")
    rows = view.get_by_role("listitem")
    expect(rows.nth(0)).to_contain_text("3 · auto_00003.safetensors · 150 ratings · candidate")
    expect(rows.nth(1)).to_contain_text(f"promoted: {HOSTILE}")
    expect(rows.nth(1)).to_have_attribute("aria-current", "true")
    expect(rows.nth(3)).to_contain_text("the model without a LoRA")
    assert view.locator("img").count() == 0 and renderer.errors == []


def test_one_click_goes_back_and_a_key_one_further(renderer: ComfyPage, view: Locator, folder: Path) -> None:
    back = view.get_by_role("button", name="Back")
    back.click()
    expect(view.locator("[aria-current]")).to_have_attribute("data-version", "1")
    view.get_by_role("listitem").nth(0).locator("span").click()  # where a click is no button's
    view.focus()
    renderer.page.keyboard.press("b")
    expect(view.locator("[aria-current]")).to_have_attribute("data-version", "0")
    expect(back).to_be_disabled()
    assert versions.read(folder).in_use == 0


def test_another_version_is_taken_and_the_candidate_dropped_by_keys(
    renderer: ComfyPage, view: Locator, folder: Path
) -> None:
    drop = view.get_by_role("button", name="Drop")
    drop.focus()
    renderer.page.keyboard.press("Enter")
    expect(view.get_by_role("listitem").nth(0)).to_contain_text("dropped: dropped by hand")
    expect(drop).to_be_hidden()
    view.get_by_role("listitem").nth(0).get_by_role("button", name="Use").focus()
    renderer.page.keyboard.press("Enter")
    expect(view.locator("[aria-current]")).to_have_attribute("data-version", "3")
    assert versions.read(folder).in_use == 3
