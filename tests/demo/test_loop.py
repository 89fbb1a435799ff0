"""The whole loop in a real ComfyUI. Short: every stage runs and the report is whole. Long: what the demo promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feedback_loop.demo import loop
from feedback_loop.demo.client import Server

pytestmark = pytest.mark.comfy

ROWS = ("plain", "watermark_penalty", "negative_prompt", "taste_guidance", "lora", "both")
KEYS = {
    "n",
    "watermark_rate",
    "attribute_accuracy",
    "diversity",
    "taste_mean",
    "taste_sd",
    "taste_gain_interval",
}


def close_the_loop(url: str, out: Path, run: str, rated: int, fresh: int) -> dict[str, Any]:
    made = loop.Loop(Server(url), run, rated, fresh)
    found, rows, losses = made.close()
    loop.write_report(out, found, rows, losses)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_the_loop_runs_through_every_stage_and_reports_all_of_them(
    comfy_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LORA", loop.LORA | {"steps": 4, "batch": 4, "pictures.count": 8})
    found = close_the_loop(comfy_server.url, tmp_path, "short_loop", rated=4, fresh=2)
    for name in ROWS:
        assert KEYS <= set(found[name]) and found[name]["n"] == 8
    assert found["plain"]["taste_gain_interval"] == [0.0, 0.0], "the same pictures differ from themselves"
    assert found["taste_guidance"]["taste_mean"] != found["plain"]["taste_mean"], "guidance changed nothing"
    assert found["rated"] == 16 and found["taste"]["bound"] <= 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == len(ROWS) and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.long
def test_the_demo_keeps_its_promises(comfy_server: Any, tmp_path: Path) -> None:
    """Judged by the independent judge and the rater's true taste on fresh prompts and seeds, 100 pictures a row."""
    found = close_the_loop(comfy_server.url, tmp_path, "long_loop", rated=loop.RATED_PROMPTS, fresh=25)
    plain, sd = found["plain"], found["plain"]["taste_sd"]
    assert 0.25 <= plain["watermark_rate"] <= 0.45 and plain["attribute_accuracy"] >= 0.9
    penalty = found["watermark_penalty"]
    assert penalty["watermark_rate"] <= plain["watermark_rate"] / 4
    taste = found["taste"]
    assert taste["held_out_accuracy"] >= (0.5 + taste["bound"]) / 2
    guided, lora, both = found["taste_guidance"], found["lora"], found["both"]
    assert min(guided["taste_gain_in_sd_of_plain"], guided["taste_gain_without_watermark_in_sd_of_plain"]) >= 0.5
    assert lora["taste_gain"] >= 0.3 * sd and lora["taste_gain_interval"][0] > 0
    assert both["taste_gain"] >= max(guided["taste_gain"], lora["taste_gain"]) - 0.1 * sd
    for row, kept in ((penalty, 0.85), (guided, 0.8), (lora, 0.8)):
        assert row["attribute_accuracy"] >= plain["attribute_accuracy"] - 0.05
        assert row["diversity"] >= kept * plain["diversity"]
