"""What a Reward guidance node shows of its run: the growing curve, the expected picture, and the word at the end."""

from __future__ import annotations

import base64
import io
import re
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, expect

from feedback_loop.tests.browser.conftest import ComfyPage

ROOT = Path(__file__).resolve().parents[2]
(PENALTY,) = (ROOT / "workflows").glob("03_*.json")
STEPS = 8
SEEDS = count(12)
SAID = re.compile(r"Reward (\S+) at first, (\S+) after (\d+) steered steps\.")

pytestmark = pytest.mark.skipif(
    not (ROOT / "demo" / "weights" / "unet" / "diffusion_pytorch_model.safetensors").exists(),
    reason="the demo model's weights are not there",
)

SET = """([type, values]) => {
  for (const node of app.graph.nodes.filter((one) => one.type === type))
    for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
}"""

# Each change of the view while the run goes on; a look from outside now and then would miss most of a short one.
WATCH = """() => {
  const view = document.querySelector('.fl-guidance');
  window.flSeen = [];
  new MutationObserver(() => {
    const line = view.querySelector('polyline')?.getAttribute('points').split(' ').length ?? 0;
    const last = window.flSeen.at(-1);
    const now = { points: line, picture: view.querySelector('img').src, running: app.ui.lastQueueSize > 0 };
    if (!last || last.points !== now.points || last.picture !== now.picture) window.flSeen.push(now);
  }).observe(view, { childList: true, subtree: true, attributes: true });
}"""


def opened(page: ComfyPage, **guidance: Any) -> Locator:
    """Workflow 03 with few pictures and steps, in view; the view of its guidance node."""
    page.load(PENALTY)
    page.page.evaluate(SET, ["EmptyLatentImage", {"batch_size": 2}])
    # a seed of its own each time: ComfyUI does not run again what it has just made
    page.page.evaluate(SET, ["KSampler", {"steps": STEPS, "seed": next(SEEDS)}])
    page.page.evaluate(SET, ["FeedbackRewardGuidance", guidance])
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    view = page.page.locator(".fl-guidance")
    expect(view).to_contain_text("The reward of each step appears here")
    return view


def shown_picture(source: str) -> np.ndarray:
    head, data = source.split(",", 1)
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_the_curve_grows_and_the_expected_picture_clears_while_the_sampler_runs(renderer: ComfyPage) -> None:
    view = opened(renderer)
    renderer.page.evaluate(WATCH)
    assert renderer.queue()["status"]["status_str"] == "success"
    said = view.locator(".fl-said")
    expect(said).to_have_text(SAID)
    first, last, steps = SAID.fullmatch(said.inner_text()).groups()
    assert first != last and 3 <= int(steps) <= STEPS
    # the same in words, for who can't see the curve
    expect(view.locator("svg")).to_have_attribute("aria-label", said.inner_text().removesuffix("."))
    seen = renderer.page.evaluate("() => window.flSeen")
    points = [one["points"] for one in seen if one["points"]]
    assert sorted(set(points)) == list(range(1, int(steps) + 1)) and points == sorted(points)
    assert all(one["running"] for one in seen[:-1]), "shown after the run, not while it went on"
    pictures = [shown_picture(one["picture"]) for one in seen if one["picture"]]
    assert pictures[0].shape == (64, 64, 3) and not np.array_equal(pictures[0], pictures[-1])
    assert renderer.errors == []


def test_too_much_and_nothing_are_said_in_the_node_and_forgotten_by_the_next_run(shared_comfy_page: ComfyPage) -> None:
    """Strength 10 makes steps of six standard deviations of what the model leaves open; the last hundredth of the run
    holds no step of eight; strength .05 is next to nothing, and nothing is wrong with it."""
    view = opened(shared_comfy_page, strength=10.0)
    problems = view.get_by_role("listitem")
    assert shared_comfy_page.queue()["status"]["status_str"] == "success"
    expect(problems.first).to_contain_text("Lower the strength")
    shared_comfy_page.page.evaluate(SET, ["FeedbackRewardGuidance", {"strength": 0.05}])
    assert shared_comfy_page.queue()["status"]["status_str"] == "success"
    expect(problems).to_have_count(0)
    shared_comfy_page.page.evaluate(SET, ["FeedbackRewardGuidance", {"start_percent": 0.99}])
    assert shared_comfy_page.queue()["status"]["status_str"] == "success"
    expect(problems).to_contain_text("No step was steered")
