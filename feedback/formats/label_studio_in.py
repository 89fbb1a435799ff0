"""Label Studio's JSON, in: ratings, tags, comments, marks and marked words of what people did there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ..marks import Region, Tag, WordMark
from ..records import Comment, Generation, Rating
from . import masks
from .archive import Documents
from .bundle import BadData, Bundle
from .guards import PICTURES, UUID, number, rows_of, text
from .label_studio import LABELS, STARS, words_of

SHAPES = {kind: shape for shape, kind in LABELS.items()} | {
    "rectangle": "rect", "keypoint": "point", "polygon": "polygon", "brush": "mask"
}  # fmt: skip


@dataclass(frozen=True)
class _Result:
    """One result of an annotation, and what is needed to understand it."""

    row: dict[str, Any]
    value: dict[str, Any]
    key: str
    prompt: str
    rater: str
    where: str


def recognises(documents: Documents) -> bool:
    """Whether a document is a list of tasks."""
    return any(True for _ in documents.lists("data"))


def read(documents: Documents, rater: str) -> Bundle:
    """What the annotations say. rater: who judged, where the file does not say. Raises BadData."""
    bundle = Bundle()
    for name, tasks in documents.lists("data"):
        for n, task in enumerate(tasks):
            _take_task(bundle, documents, name, task, rater, f"{name or 'The file'}, task {n}")
    return bundle


def _take_task(bundle: Bundle, documents: Documents, name: str, task: dict[str, Any], rater: str, where: str) -> None:
    data = task["data"]
    if not isinstance(data, dict):
        raise BadData(f"{where}: data must be an object.")
    named = _picture_of(data)
    if named is None:
        return bundle.report.leave("tasks: their data names no picture")
    prompt = text(data, "prompt", where)
    known = data.get("image_id")
    if documents.bare and isinstance(known, str) and UUID.fullmatch(known):
        named = known
    key = documents.picture(bundle, named, Generation(prompt=prompt or None), name)
    for annotation in rows_of(task.get("annotations"), f"{where}: annotations"):
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            bundle.report.leave("annotations: they were skipped there")
            continue
        _take_annotation(bundle, annotation, key, prompt or "", _who(annotation, rater), where)
    bundle.report.leave("predictions: nobody said them", len(rows_of(task.get("predictions"), f"{where}: predictions")))


def _picture_of(data: dict[str, Any]) -> str | None:
    """The text that names the picture: `image`, or the only one that ends as a picture does."""
    if isinstance(data.get("image"), str):
        return data["image"]
    named = [v for v in data.values() if isinstance(v, str) and v.split("?")[0].lower().endswith(PICTURES)]
    return named[0] if len(named) == 1 else None


def _who(annotation: dict[str, Any], rater: str) -> str:
    by = annotation.get("completed_by")
    if isinstance(by, dict):
        email, number_ = by.get("email"), by.get("id")
        return email if isinstance(email, str) and email else f"user {number_}" if number_ is not None else rater
    return f"user {by}" if isinstance(by, int) and not isinstance(by, bool) else rater


def _take_annotation(bundle: Bundle, annotation: dict[str, Any], key: str, prompt: str, rater: str, where: str) -> None:
    results = rows_of(annotation.get("result"), f"{where}: result")
    extra = _per_region(results, where)
    given = _time(annotation.get("created_at"), where)
    for row in results:
        value, kind = row.get("value"), row.get("type")
        if not isinstance(value, dict) or not isinstance(kind, str):
            if row.get("type") != "relation":
                raise BadData(f"{where}: a result needs type and value.")
            bundle.report.leave("results: relations between regions are not known here")
            continue
        meta = row.get("meta") if isinstance(row.get("meta"), dict) else {}
        who = text(meta, "rater", where) or rater  # type: ignore[arg-type]
        at = _time(meta.get("at"), where) or given  # type: ignore[union-attr]
        if kind in ("number", "textarea") and _id(row) in extra:
            continue  # said with its region
        one = _Result(row, value, key, prompt, who, where)
        if kind in SHAPES:
            _say_region(bundle, one, SHAPES[kind], extra.get(_id(row), {}), at)
        elif kind in _READERS:
            _READERS[kind](bundle, one, at)
        else:
            bundle.report.leave(f"results of the type {kind[:40]!r}: not one that is known here")


def _id(row: dict[str, Any]) -> str:
    return str(row.get("id", ""))


def _per_region(results: list[dict[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """id of a region -> its severity and comment, where results of the same id say them."""
    regions = {_id(row) for row in results if row.get("type") in SHAPES and row.get("id") is not None}
    extra: dict[str, dict[str, Any]] = {id_: {} for id_ in regions}
    for row in results:
        value = row.get("value")
        if _id(row) in regions and isinstance(value, dict):
            if row.get("type") == "number":
                extra[_id(row)]["severity"] = number(value, "number", where)
            elif row.get("type") == "textarea":
                extra[_id(row)]["comment"] = "\n".join(_texts(value, "text", where))
    return extra


def _texts(value: dict[str, Any], name: str, where: str) -> list[str]:
    """A list of texts, or one alone."""
    found = value.get(name)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BadData(f"{where}: {name} must be a list of texts.")
    return found


def _time(at: Any, where: str) -> datetime | None:
    if at is None:
        return None
    try:
        found = datetime.fromisoformat(str(at).replace("Z", "+00:00"))
    except ValueError as error:
        raise BadData(f"{where}: {str(at)[:40]!r} is no time.") from error
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


# --- results of the whole picture ------------------------------------------------------------------------------------


def _say_rating(bundle: Bundle, one: _Result, at: datetime | None) -> None:
    stars = number(one.value, "rating", one.where)
    if stars is None:
        raise BadData(f"{one.where}: a rating without a number.")
    if not STARS[0] <= stars <= STARS[1]:
        return bundle.report.leave("ratings: only 1 to 5 stars are taken from there")
    axis = text(one.row, "from_name", one.where) or "overall"
    bundle.say(lambda: Rating(one.key, stars, one.rater, axis, *STARS), one.where, at)


def _say_tags(bundle: Bundle, one: _Result, at: datetime | None) -> None:
    for tag in _texts(one.value, "choices", one.where):
        bundle.say(lambda tag=tag: Tag(one.key, tag, one.rater), one.where, at)


def _say_comment(bundle: Bundle, one: _Result, at: datetime | None) -> None:
    for said in _texts(one.value, "text", one.where):
        bundle.say(lambda said=said: Comment(one.key, said, one.rater), one.where, at)


def _say_words(bundle: Bundle, one: _Result, at: datetime | None) -> None:
    start, end = number(one.value, "start", one.where), number(one.value, "end", one.where)
    covered = [
        (index, word)
        for index, (first, last, word) in enumerate(words_of(one.prompt))
        if start is not None and end is not None and first < end and last > start
    ]
    bundle.report.leave("marked words: they do not stand in the prompt", not covered)
    for index, word in covered:
        for label in _texts(one.value, "labels", one.where):
            bundle.say(lambda i=index, w=word, says=label: WordMark(one.key, i, w, says, one.rater), one.where, at)  # type: ignore[arg-type]


_READERS: dict[str, Callable[[Bundle, _Result, datetime | None], None]] = {
    "rating": _say_rating,
    "choices": _say_tags,
    "textarea": _say_comment,
    "labels": _say_words,
}


# --- marks -----------------------------------------------------------------------------------------------------------


def _say_region(bundle: Bundle, one: _Result, shape: Any, extra: dict[str, Any], at: datetime | None) -> None:
    kind = LABELS[shape]
    labels = _texts(one.value, kind, one.where) if kind in one.value else []
    if shape == "rect" and number(one.value, "rotation", one.where):
        shape = "polygon"
        points = _rotated(one)
    else:
        points = _points(one, shape)
    mask = None
    if shape == "mask":
        if one.value.get("format") != "rle":
            return bundle.report.leave("brush marks: only those packed as rle are taken")
        width, height = _original(one)
        mask = masks.to_png(masks.unpack_brush(_packed(one), width, height, one.where))
    for label in labels or ["unlabelled"]:
        bundle.say(
            lambda label=label: Region(
                one.key, shape, points, label, one.rater, extra.get("severity"), extra.get("comment") or None, mask
            ),  # type: ignore[arg-type]
            one.where,
            at,
        )


def _packed(one: _Result) -> list[int]:
    packed = one.value.get("rle")
    if not isinstance(packed, list):
        raise BadData(f"{one.where}: rle must be a list of bytes.")
    return packed


def _original(one: _Result) -> tuple[int, int]:
    size = one.row.get("original_width"), one.row.get("original_height")
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in size):
        raise BadData(f"{one.where}: original_width and original_height must be whole numbers.")
    return size  # type: ignore[return-value]


def _need(one: _Result, name: str) -> float:
    if (found := number(one.value, name, one.where)) is None:
        raise BadData(f"{one.where}: {name} is missing in a mark.")
    return found


def fraction(percent: float) -> float:
    """Per cent as a fraction of the picture; marks that stick out of it are cut off."""
    return min(max(percent / 100, 0.0), 1.0)


def _points(one: _Result, shape: str) -> tuple[tuple[float, float], ...]:
    if shape == "mask":
        return ()
    if shape == "polygon":
        points = one.value.get("points")
        if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
            raise BadData(f"{one.where}: points must be a list of [x, y].")
        pairs = [{"x": x, "y": y} for x, y in points]
        found = [(number(p, "x", one.where), number(p, "y", one.where)) for p in pairs]
        return tuple((fraction(x or 0.0), fraction(y or 0.0)) for x, y in found)
    x, y = _need(one, "x"), _need(one, "y")
    if shape == "point":
        return ((fraction(x), fraction(y)),)
    right, bottom = x + _need(one, "width"), y + _need(one, "height")
    return ((fraction(x), fraction(y)), (fraction(right), fraction(bottom)))


def _rotated(one: _Result) -> tuple[tuple[float, float], ...]:
    """The corners of a rectangle turned about its upper left one, clockwise by `rotation` degrees on the screen."""
    width, height = _original(one)
    x, y, w, h = (_need(one, name) for name in ("x", "y", "width", "height"))
    angle = math.radians(_need(one, "rotation"))
    right = (w * math.cos(angle), w * math.sin(angle) * width / height)
    down = (-h * math.sin(angle) * height / width, h * math.cos(angle))
    steps = ((0, 0), (1, 0), (1, 1), (0, 1))
    return tuple((fraction(x + a * right[0] + b * down[0]), fraction(y + a * right[1] + b * down[1])) for a, b in steps)
