"""What bench/refine.py has measured, as Markdown."""

from __future__ import annotations

from typing import Any

HEADS = {
    "words": ("said", "right way", "the rest stays"),
    "regions": (
        "marked",
        "gone in the first",
        "gone in the one that is picked",
        "bit-equal outside",
        "seam",
        "seam, less beside",
        "from as it should be",
        "the same, nothing pasted",
        "in the blend",
    ),
    "references": ("liked", "plain", "with references", "rise", "the rest stays"),
    "rounds": ("", "pictures that are bit-equal outside", "rounds found again"),
}


def tables(parts: dict[str, Any]) -> str:
    """One table for each part of a report."""
    return "\n".join(table(part, rows) for part, rows in parts.items() if part in HEADS)


def table(part: str, rows: dict[str, Any]) -> str:
    cells = {"words": words, "regions": regions, "references": references, "rounds": rounds}[part]
    lines = [HEADS[part], ("---",) * len(HEADS[part]), *((name, *cells(row)) for name, row in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def words(row: dict[str, Any]) -> list[str]:
    return [percent(row["right"]), percent(row["kept"])]


def regions(row: dict[str, Any]) -> list[str]:
    shares = ("gone in the first candidate", "gone in the picked one", "bit-equal outside")
    seams = ["{:.2f} ({:.2f} to {:.2f})".format(*area) for area in row["seam"].values()]
    return [*(percent(row[name]) for name in shares), *seams]


def references(row: dict[str, Any]) -> list[str]:
    rise = "{:+.0f} points ({:+.0f} to {:+.0f})".format(*(100 * one for one in row["rise"]))
    return [percent(row["plain"]), percent(row["with"]), rise, percent(row["kept"])]


def rounds(row: dict[str, Any]) -> list[str]:
    found = row["rounds of each"]
    return [percent(row["bit-equal outside"]), f"{min(found)} to {max(found)} of ten"]


def percent(found: list[float]) -> str:
    """[share, low, high] -> with its interval."""
    middle, low, high = (100 * one for one in found)
    return f"{middle:.1f} % ({low:.0f} to {high:.0f})"
