"""The benchmark's figures: times are relative to a plain run that has been made, or to none at all."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEASURES = ("watermarked", "taste", "attributes", "diversity", "evaluations")


@pytest.fixture
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guidance_report", ROOT / "bench" / "guidance_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(seconds: float) -> dict[str, float]:
    return dict.fromkeys(MEASURES, 0.5) | {"seconds": seconds}


def test_a_row_that_was_run_before_plain_has_no_time_ratio_until_plain_is_run(
    report: ModuleType, tmp_path: Path
) -> None:
    """12 s against 8 s is 1.5, whichever of the two was run first; before, the ratio is unknown and not 1."""
    found = {"watermark|ours|0": row(12.0)}
    (time,) = (values["time"] for values in report.medians(found).values())
    assert all(math.isnan(value) for value in time)
    assert "plain is not run yet" in report.table(report.medians(found))
    report.plot(report.medians(found), tmp_path / "empty.png")
    found["watermark|plain|0"] = row(8.0)
    assert report.medians(found)["watermark|ours"]["time"] == [1.5, 1.5, 1.5]
    assert report.medians(found)["watermark|plain"]["time"] == [1.0, 1.0, 1.0]


def test_each_seed_is_compared_with_its_own_plain_run(report: ModuleType) -> None:
    """10/5, 30/10 and 20/20 s: ratios 2, 3 and 1."""
    pairs = [(10.0, 5.0), (30.0, 10.0), (20.0, 20.0)]
    found = {f"taste|ours|{seed}": row(ours) for seed, (ours, _) in enumerate(pairs)}
    found |= {f"watermark|plain|{seed}": row(plain) for seed, (_, plain) in enumerate(pairs)}
    assert report.medians(found)["taste|ours"]["time"] == [2.0, 1.0, 3.0]


def test_a_report_of_before_with_times_of_its_own_is_read_anew(report: ModuleType) -> None:
    found = {"watermark|ours|0": row(12.0) | {"time": 1.0}, "watermark|plain|0": row(8.0) | {"time": 1.0}}
    assert report.medians(found)["watermark|ours"]["time"][0] == 1.5


def test_ours_is_dominated_by_what_reaches_more_and_is_in_nothing_worse(report: ModuleType) -> None:
    """A lower watermark rate at the same cost dominates; not where the ranges meet, nor where attributes are paid."""
    ours, better = row(10.0), row(10.0) | {"watermarked": 0.2}
    cases = {"more": better, "paid": better | {"attributes": 0.1}, "slower": better | {"seconds": 30.0}}
    for name, other in cases.items():
        found = {f"watermark|{w}|0": values for w, values in {"plain": row(8.0), "ours": ours, name: other}.items()}
        expected = [("watermark|ours", "watermark|more")] if name == "more" else []
        assert report.dominated(report.medians(found)) == expected, name
    found |= {"watermark|ours|1": row(10.0) | {"watermarked": 0.1}, "watermark|more|0": better}
    found |= {"watermark|plain|1": row(8.0)}
    assert report.dominated(report.medians(found)) == []
    assert "None of ours" in report.verdict(report.medians(found))


def test_the_page_of_the_docs_shows_the_figures_beside_it(report: ModuleType) -> None:
    page = (ROOT / "docs" / "guidance_bench.md").read_text()
    rows = report.medians(json.loads((ROOT / "docs" / "guidance_bench.json").read_text()))
    assert f"<!-- table -->\n{report.table(rows)}<!-- /table -->" in page
    assert f"<!-- verdict -->\n{report.verdict(rows)}<!-- /verdict -->" in page
