"""The training benchmark's tables: medians with ranges over seeds, and what is missing or failed is said."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_report", ROOT / "bench" / "training_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(curve: list[float]) -> dict[str, Any]:
    return {"curve": curve, "last": curve[-1], "first": curve[0]}


def test_a_cell_is_the_median_with_the_range(report: ModuleType) -> None:
    assert report.cell([3.0, 1.0, 2.0]) == "2 (1 .. 3)"
    assert report.cell([0.5], "+.2f") == "+0.50"
    assert report.cell([]) == "not measured"


def test_what_failed_stands_in_the_table_as_not_measured(report: ModuleType) -> None:
    found = {"speed|ours|1|0": {"peak": 10.0}, "speed|ours|4|0": {"failed": "exit status 1"}}
    assert "| ours | 10 | not measured |" in report.speed(found, "peak")


def test_pictures_until_ddpos_reward_are_counted_up_to_the_epoch_that_reaches_it_for_good(report: ModuleType) -> None:
    """Epochs of 32: NFT reaches -0.5, what DDPO's better run came to in the end, by chance in its second one and for
    good in its fourth, drawn after 96 pictures; PPO never does."""
    found = {
        "online|NFT|0": run([-2.0, -0.4, -1.0, -0.4, -0.3]),
        "online|PPO|0": run([-2.0, -1.9, -1.8, -1.7]),
        "online|DDPOTrainer|0": run([-2.0, -1.0, -0.8, -0.5]),
        "online|DDPOTrainer, its own rate|0": run([-2.0, -1.5, -1.2, -1.0]),
        "online|DDPOTrainer|1": run([-2.0, -0.1]),
    }
    assert report.images_to_ddpo(found, "online|NFT|0") == 96
    assert math.isnan(report.images_to_ddpo(found, "online|PPO|0"))
    assert report.images_to_ddpo(found, "online|DDPOTrainer|0") == 96


def test_the_curve_is_ordered_by_way_and_by_number(report: ModuleType, tmp_path: Path) -> None:
    found = {
        f"curve|SFT|{count}|{seed}": {"gain": gain, "interval": [0.1, 0.9]}
        for count, seed, gain in ((200, 0, 0.6), (50, 0, 0.3), (200, 1, 0.4))
    }
    lines = report.curve(found).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["50", "200"]
    assert "+0.50 (+0.40 .. +0.60)" in lines[1]
    report.plot(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
