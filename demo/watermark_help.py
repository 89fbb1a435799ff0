"""How far the watermark detector can be trusted, as its help page says it.

demo/train_watermark.py writes that paragraph of web/docs/FeedbackWatermarkPenalty.md anew, from docs/watermark.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Any

from feedback_loop.demo.marked import filled

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "web" / "docs" / "FeedbackWatermarkPenalty.md"
REPORT = ROOT / "docs" / "watermark.json"

Row = dict[str, Any]


def paragraph(rows: list[Row]) -> str:
    """Of the families that were held out of training, on all kinds of pictures and on the demo's drawn world."""
    held_out = [row for row in rows if row["held_out"]]
    mixed = [row for row in held_out if row["pictures"] == "all"]
    drawn = [row for row in held_out if row["pictures"] == "drawn world"]
    if not mixed or not drawn:
        raise ValueError(f"{REPORT.name} has no held-out families of both kinds of pictures any more")
    sizes = " to ".join(str(edge) for edge in ends(row["size"] for row in mixed))
    said = (
        f"Measured on marks of kinds that it was never trained on, faint ones included. On mixed pictures of {sizes} "
        f"pixels it scores a marked picture above a clean one in {between(mixed, 'auroc')} of a hundred cases (50 is "
        f"chance), and finds {between(mixed, 'tpr_at_1_fpr')} of a hundred marks if it may accuse one clean picture in "
        f"a hundred. On the demo's drawn world it is {between(drawn, 'auroc')} and {between(drawn, 'tpr_at_1_fpr')}."
    )
    return fill(said, 120) + "\n"


def between(rows: Iterable[Row], key: str) -> str:
    """From the worst to the best family in whole hundredths, cut off, so that no family is said to be better."""
    low, high = ends(int(100 * row[key]) for row in rows)
    return f"{low} to {high}" if low < high else str(low)


def ends(values: Iterable[int]) -> tuple[int, int]:
    known = list(values)
    return min(known), max(known)


def renew() -> None:
    """Writes the paragraph into the page."""
    rows = json.loads(REPORT.read_text("utf-8"))["rows"]
    PAGE.write_text(renewed(PAGE.read_text("utf-8"), rows), "utf-8")


def renewed(page: str, rows: list[Row]) -> str:
    return filled(page, "measured", paragraph(rows))
