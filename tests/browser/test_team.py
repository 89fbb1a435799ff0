"""Team mode in a real browser: the page asks for a token once, and judges as whoever it belongs to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from feedback_loop.feedback.commands import PROGRAM
from feedback_loop.tests.comfy_host import ComfyServer

from .conftest import ComfyPage

pytestmark = pytest.mark.long  # a server of its own


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ComfyServer]:
    monkeypatch.setenv("FEEDBACK_LOOP_TEAM", "1")
    yield request.getfixturevalue("own_comfy_server")


def token_of(rater: str, base: Path) -> str:
    command = [sys.executable, *PROGRAM.split()[1:], "token", "add", rater]
    done = subprocess.run(command, cwd=base, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.strip()


API = "/feedback_loop/v1"
RATE = """async image => {
  const api = await import('/extensions/feedback_loop/js/judgement_api.js');
  return api.postRating(image, { value: 4, scale: { min: 1, max: 5 } });
}"""


def test_a_page_judges_as_the_owner_of_the_token_that_it_asked_for(team: ComfyServer, page: Page):
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 24, "batch_size": 1, "color": 255}},
        "2": {"class_type": "FeedbackCapture", "inputs": {"images": ["1", 0], "collection": "team"}},
    }
    (image,) = team.run(graph)["2"]["feedback_images"]
    assert team.request("GET", f"{API}/images")[0] == 401
    token = token_of("Ann", team.base_directory)
    bearer = {"Authorization": f"Bearer {token}"}
    ComfyPage(page, team).open()
    expect(page.get_by_text("shared by a team")).to_be_visible(timeout=60_000)
    page.get_by_role("textbox", name="This ComfyUI is shared by a team").fill(token)
    page.keyboard.press("Enter")
    expect(page.get_by_text("shared by a team")).to_be_hidden()
    page.wait_for_function("() => window.app.extensionManager.setting.get('FeedbackLoop.Rater') === 'Ann'")
    page.evaluate(RATE, image)
    (one,) = team.request("GET", f"{API}/images/{image}", headers=bearer)[1]["ratings"]
    assert (one["rater"], one["value"]) == ("Ann", 4)
    page.reload()
    page.wait_for_function("() => window.app?.extensionManager")
    page.evaluate(RATE, image)
    assert page.get_by_text("shared by a team").count() == 0, "it is kept in this browser"
