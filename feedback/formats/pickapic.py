"""Pick-a-Pic's Parquet: a row for each pair of pictures of one prompt that somebody compared (Kirstain et al. 2023).

The columns are exactly theirs, so that files can be put together. What has no column but should come back stands in the
file's metadata: who the numbers of raters are, and on which axis they judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..marks import Ranking, Region, Tag, WordMark
from ..records import Comment, Comparison, Generation, Rating, Winner
from . import parquet
from .bundle import BadData, Bundle, Picture, Report, leave_kinds, leave_settings
from .guards import key_of, text

COLUMNS = (
    *("are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_0_url"),
    *("image_1_uid", "image_1_url", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id"),
    "user_id",
)
LABELS: dict[Winner, tuple[float, float]] = {"left": (1.0, 0.0), "right": (0.0, 1.0), "tie": (0.5, 0.5)}
ONLY_PAIRS = "Pick-a-Pic holds choices between two pictures only"


def write(bundle: Bundle, path: Path) -> Report:
    """Writes the comparisons that say which picture is preferred, or that neither is."""
    report = Report()
    leave_kinds(report, bundle, (Rating, Ranking, Region, WordMark, Tag, Comment), ONLY_PAIRS)
    compared = bundle.of(Comparison)
    axis = compared[0][0].axis if compared else "overall"
    kept = [(c, at) for c, at in compared if c.winner in LABELS and c.axis == axis]
    report.leave(
        'comparisons: "both bad" and "skip" have no label there', sum(c.winner not in LABELS for c, _ in compared)
    )
    report.leave(f"comparisons: a file holds one axis, here {axis!r}", sum(c.axis != axis for c, _ in compared))
    for name in ("strength", "policy", "propensity", "lead_time"):
        count = sum(getattr(c, name) is not None for c, _ in kept)
        report.leave(f"comparisons' {name.replace('_', ' ')}: there is no column for it", count)
    used = dict.fromkeys(side for c, _ in kept for side in (c.left, c.right))
    leave_settings(report, (bundle.pictures[key] for key in used), {"checkpoint"}, "there is no column for them")
    raters = list(dict.fromkeys(c.rater for c, _ in kept))
    rows = _rows(bundle, kept, raters, report)
    report.held["comparisons"] = parquet.write(path, _columns(), rows, {"raters": raters, "axis": axis})
    report.held["pictures"] = len(used)
    return report


def _columns() -> dict[str, tuple[Any, dict[str, Any] | None]]:
    pa, _ = parquet.arrow()
    kinds = {
        "bool": pa.bool_(), "string": pa.string(), "timestamp[ns]": pa.timestamp("ns"), "binary": pa.binary(),
        "float64": pa.float64(), "int64": pa.int64(),
    }  # fmt: skip
    special = {
        "are_different": "bool", "has_label": "bool", "created_at": "timestamp[ns]", "jpg_0": "binary",
        "jpg_1": "binary", "label_0": "float64", "label_1": "float64", "ranking_id": "int64", "user_id": "int64",
    }  # fmt: skip
    dtypes = {name: special.get(name, "string") for name in COLUMNS}
    return {name: (kinds[dtype], parquet.value(dtype)) for name, dtype in dtypes.items()}


def _rows(
    bundle: Bundle, kept: list[tuple[Comparison, datetime | None]], raters: list[str], report: Report
) -> Iterator[tuple[dict[str, Any], int]]:
    for ranking, (one, at) in enumerate(kept, 1):
        left, right = bundle.pictures[one.left], bundle.pictures[one.right]
        if left.generation.prompt != right.generation.prompt:
            report.leave("prompts of right pictures: a row has one caption, that of the left")
        label = LABELS[one.winner]
        files = [_file(picture) for picture in (left, right)]
        best = {"left": one.left, "right": one.right}.get(one.winner, "tie")
        row = {
            "are_different": one.winner != "tie", "best_image_uid": best, "caption": left.generation.prompt,
            "created_at": None if at is None else at.astimezone(timezone.utc).replace(tzinfo=None),
            "has_label": True, "image_0_uid": one.left, "image_1_uid": one.right, "image_0_url": "", "image_1_url": "",
            "jpg_0": files[0], "jpg_1": files[1], "label_0": label[0], "label_1": label[1],
            "model_0": left.generation.checkpoint, "model_1": right.generation.checkpoint,
            "ranking_id": ranking, "user_id": raters.index(one.rater) + 1,
        }  # fmt: skip
        yield row, sum(map(len, files))


def _file(picture: Picture) -> bytes:
    if picture.read is None:
        raise BadData(f"The picture {picture.key!r} has no file to export.")
    return picture.read()


def recognises(table: parquet.Table) -> bool:
    """Whether the columns are Pick-a-Pic's."""
    return {"caption", "jpg_0", "jpg_1", "label_0", "label_1"} <= set(table.schema.names)


def read(table: parquet.Table, rater: str) -> Bundle:
    """The comparisons and their pictures. rater: who judged, where the file has no users. Raises BadData."""
    for column, kinds in {"caption": ("text",), "jpg_0": ("picture",), "jpg_1": ("picture",)}.items():
        table.need(column, *kinds)
    for column in ("label_0", "label_1"):
        table.need(column, "number")
    optional = {
        "image_0_uid": ("text",), "image_1_uid": ("text",), "model_0": ("text",), "model_1": ("text",),
        "user_id": ("number", "text"), "created_at": ("time", "text"), "has_label": ("flag",),
    }  # fmt: skip
    there = [column for column in optional if column in table]
    for column in there:
        table.need(column, *optional[column])
    bundle, note = Bundle(), table.note()
    lacks = [table.lacking(f"jpg_{side}") for side in (0, 1)]
    for row in table.read(["caption", "label_0", "label_1", *there]):
        _take(bundle, table, row, lacks, _names(note, rater), str(note.get("axis") or "overall"))
    return bundle


def _names(note: dict[str, Any], rater: str) -> dict[str, str]:
    raters = note.get("raters")
    named = raters if isinstance(raters, list) and all(isinstance(name, str) for name in raters) else []
    return {"": rater, **{str(n): name for n, name in enumerate(named, 1)}}


def _take(
    bundle: Bundle, table: parquet.Table, row: dict[str, Any], lacks: list[set[int]], names: dict[str, str], axis: str
) -> None:
    where = f"Row {row['']}"
    labels = (row["label_0"], row["label_1"])
    winner: Any = next((w for w, pair in LABELS.items() if pair == labels), None)
    if row.get("has_label") is False or winner is None:
        return bundle.report.leave("pairs: nobody labelled them")
    if row[""] in lacks[0] or row[""] in lacks[1]:
        return bundle.report.leave("pairs: a picture is not in the file, and URLs are never fetched")
    sides = [_picture(bundle, table, row, side, where) for side in (0, 1)]
    if sides[0] == sides[1]:
        return bundle.report.leave("pairs: both sides are the same picture")
    user = row.get("user_id")
    who = names[""] if user is None else names.get(str(user), f"user {user}")
    at = row.get("created_at")
    at = at.replace(tzinfo=timezone.utc) if isinstance(at, datetime) and at.tzinfo is None else at
    time = at if isinstance(at, datetime) else None
    bundle.say(lambda: Comparison(sides[0], sides[1], winner, who, axis), where, time)


def _picture(bundle: Bundle, table: parquet.Table, row: dict[str, Any], side: int, where: str) -> str:
    key = key_of(text(row, f"image_{side}_uid", where) or f"row {row['']}, picture {side}")
    made = Generation(prompt=text(row, "caption", where), checkpoint=text(row, f"model_{side}", where))
    return bundle.picture(Picture(key, table.picture(row[""], f"jpg_{side}"), made))
