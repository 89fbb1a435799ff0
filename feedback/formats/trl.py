"""TRL's preference format with pictures as answers: prompt, chosen, rejected, in Parquet with the Image feature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..marks import Ranking, Region, Tag, WordMark
from ..records import Comment, Comparison, Generation, Rating
from . import parquet
from .bundle import BadData, Bundle, Picture, Report, leave_kinds, leave_settings
from .guards import key_of, text

WHY = "TRL holds a prompt, the chosen and the rejected picture"


def write(bundle: Bundle, path: Path) -> Report:
    """Writes the comparisons that have a winner."""
    report = Report()
    leave_kinds(report, bundle, (Rating, Ranking, Region, WordMark, Tag, Comment), WHY)
    compared = [one for one, _ in bundle.of(Comparison)]
    kept = [one for one in compared if one.winner in ("left", "right")]
    report.leave("comparisons without a winner: there is none to be chosen", len(compared) - len(kept))
    report.leave("comparisons' rater, axis, side, time and strength: there are no columns for them", len(kept))
    used = dict.fromkeys(side for one in kept for side in (one.left, one.right))
    leave_settings(report, (bundle.pictures[key] for key in used), (), "there are no columns for them")
    columns: dict[str, tuple[Any, dict[str, Any] | None]] = {
        "prompt": (parquet.arrow()[0].string(), parquet.value("string")),
        "chosen": (parquet.image_type(), parquet.IMAGE),
        "rejected": (parquet.image_type(), parquet.IMAGE),
    }
    report.held["comparisons"] = parquet.write(path, columns, _rows(bundle, kept, report), {})
    report.held["pictures"] = len(used)
    return report


def _rows(bundle: Bundle, kept: list[Comparison], report: Report) -> Iterator[tuple[dict[str, Any], int]]:
    for one in kept:
        sides = (one.left, one.right) if one.winner == "left" else (one.right, one.left)
        chosen, rejected = (bundle.pictures[key] for key in sides)
        if chosen.read is None or rejected.read is None:
            raise BadData(f"The picture {chosen.key if chosen.read is None else rejected.key!r} has no file to export.")
        if chosen.generation.prompt != rejected.generation.prompt:
            report.leave("prompts of rejected pictures: a row has one prompt, that of the chosen")
        files = chosen.read(), rejected.read()
        cells = [parquet.image_cell(data, key) for data, key in zip(files, sides, strict=True)]
        row = {"prompt": chosen.generation.prompt, "chosen": cells[0], "rejected": cells[1]}
        yield row, sum(map(len, files))


def recognises(table: parquet.Table) -> bool:
    """Whether the columns are TRL's."""
    return {"prompt", "chosen", "rejected"} <= set(table.schema.names)


def read(table: parquet.Table, rater: str) -> Bundle:
    """The comparisons and their pictures; the chosen one stands left. rater: who judged. Raises BadData."""
    table.need("prompt", "text")
    for column in ("chosen", "rejected"):
        table.need(column, "picture")
    bundle = Bundle()
    lacks = table.lacking("chosen") | table.lacking("rejected")
    paths = {column: table.paths(column) for column in ("chosen", "rejected")}
    for row in table.read(["prompt"]):
        where, number = f"Row {row['']}", row[""]
        if number in lacks:
            bundle.report.leave("pairs: a picture is not in the file, and URLs are never fetched")
            continue
        made = Generation(prompt=text(row, "prompt", where))
        keys = []
        for column in ("chosen", "rejected"):
            key = key_of(paths[column][number] or f"row {number}, {column}")
            keys.append(bundle.picture(Picture(key, table.picture(number, column), made)))
        if keys[0] == keys[1]:
            bundle.report.leave("pairs: both sides are the same picture")
            continue
        bundle.say(lambda keys=keys: Comparison(keys[0], keys[1], "left", rater), where)
    return bundle
