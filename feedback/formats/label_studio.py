"""Label Studio's JSON, out: tasks with annotations, geometry in per cent, beside the labelling interface as config.xml.

A rater's judgements of a picture are one annotation; who and when stands in the `meta` of each result, because Label
Studio takes no annotation of a user whom it does not know. The way back is in `label_studio_in`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr  # it writes XML, none is ever parsed # nosec B406

from ..marks import Ranking, Region, Tag, WordMark
from ..records import Comment, Comparison, Rating
from . import masks
from .archive import Sink
from .bundle import Bundle, Picture, Report, leave_kinds, leave_settings
from .sizes import size_of

FILES = "/data/local-files/?d="  # where Label Studio serves files of its own disk
LABELS = {"rect": "rectanglelabels", "point": "keypointlabels", "polygon": "polygonlabels", "mask": "brushlabels"}
STARS = (1.0, 5.0)
ONE = "a task has one picture; take Pick-a-Pic, HPDv2 or ImageReward for these"


def write(bundle: Bundle, path: Path) -> Report:
    """A ZIP with tasks.json, config.xml and the pictures."""
    report = Report()
    leave_kinds(report, bundle, (Comparison, Ranking), ONE)
    leave_settings(report, bundle.pictures.values(), (), "there is no field for them")
    said: dict[str, list[tuple[Any, datetime | None]]] = defaultdict(list)
    for one in bundle.said:
        if not isinstance(one.record, (Comparison, Ranking)) and _holds(bundle, one.record, report):
            said[one.record.image_id].append((one.record, one.at))
            report.held[_KINDS[type(one.record)]] += 1
    numbers = count(1)
    with Sink(path) as sink:
        tasks = [
            _task(n, picture, FILES + sink.picture(picture), said[key], numbers)
            for n, (key, picture) in enumerate(bundle.pictures.items(), 1)
        ]
        sink.json("tasks.json", tasks)
        sink.put("config.xml", config([one.record for one in bundle.said]))
    report.held["pictures"] = len(tasks)
    return report


_KINDS: dict[type, str] = {
    Rating: "ratings", Region: "regions", WordMark: "word marks", Tag: "tags", Comment: "comments"
}  # fmt: skip


def _holds(bundle: Bundle, record: Any, report: Report) -> bool:
    """Whether the format can say it; what it can't is noted."""
    if isinstance(record, Rating):
        stars = (record.scale_min, record.scale_max) == STARS and record.raw == int(record.raw)
        if not stars:
            report.leave("ratings: only whole stars from 1 to 5 fit its Rating tag")
        elif record.lead_time is not None or record.comment is not None:
            report.leave("ratings' lead times and comments: a rating is a number there")
        return stars
    if isinstance(record, WordMark):
        words = list(words_of(bundle.pictures[record.image_id].generation.prompt or ""))
        fits = record.word_index < len(words) and words[record.word_index][2] == record.word
        report.leave("marked words: they do not stand in the prompt", not fits)
        return fits
    return True


def words_of(prompt: str) -> list[tuple[int, int, str]]:
    """(start, end, word) of each word of prompt.split()."""
    return [(found.start(), found.end(), found.group()) for found in re.finditer(r"\S+", prompt)]


def _task(
    number: int, picture: Picture, file: str, said: list[tuple[Any, datetime | None]], numbers: count[int]
) -> dict[str, Any]:
    by_rater: dict[str, list[dict[str, Any]]] = {}
    for record, at in said:
        meta = {"rater": record.rater} | ({} if at is None else {"at": at.astimezone(timezone.utc).isoformat()})
        for result in _results(record, picture, f"r{next(numbers)}"):
            by_rater.setdefault(record.rater, []).append(result | {"meta": meta, "origin": "manual"})
    data = {"image": file, "prompt": picture.generation.prompt or "", "image_id": picture.key}
    annotations = [{"id": next(numbers), "result": results, "was_cancelled": False} for results in by_rater.values()]
    return {"id": number, "data": data, "annotations": annotations, "predictions": []}


def _results(record: Any, picture: Picture, id_: str) -> list[dict[str, Any]]:
    if isinstance(record, Region):
        return _region(record, picture, id_)
    if isinstance(record, Rating):
        return [_result(id_, record.axis, "image", "rating", {"rating": int(record.raw)})]
    if isinstance(record, Tag):
        return [_result(id_, "tags", "image", "choices", {"choices": [record.tag]})]
    if isinstance(record, Comment):
        return [_result(id_, "comment", "image", "textarea", {"text": [record.text]})]
    start, end, word = words_of(picture.generation.prompt or "")[record.word_index]
    value = {"start": start, "end": end, "text": word, "labels": [record.label]}
    return [_result(id_, "words", "prompt", "labels", value)]


def _result(id_: str, name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": id_, "from_name": name, "to_name": to, "type": kind, "value": value}


def _region(region: Region, picture: Picture, id_: str) -> list[dict[str, Any]]:
    """The mark, and as results of the same id its severity and comment."""
    width, height = size_of(picture)
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    kind = LABELS[region.shape]
    place = _place(region)
    found = [_result(id_, region.shape, "image", kind, place | {kind: [region.label]}) | size]
    bare = {name: value for name, value in place.items() if name not in ("rle", "format")}
    if region.severity is not None:
        found.append(_result(id_, "severity", "image", "number", bare | {"number": region.severity}) | size)
    if region.comment is not None:
        found.append(_result(id_, "note", "image", "textarea", bare | {"text": [region.comment]}) | size)
    return found


def _place(region: Region) -> dict[str, Any]:
    points = [(100 * x, 100 * y) for x, y in region.geometry]
    if region.shape == "point":
        return {"x": points[0][0], "y": points[0][1], "width": 0.5}
    if region.shape == "polygon":
        return {"points": [list(point) for point in points], "closed": True}
    if region.shape == "rect":
        (x0, y0), (x1, y1) = points
        place = {"x": min(x0, x1), "y": min(y0, y1), "width": abs(x1 - x0), "height": abs(y1 - y0)}
        return place | {"rotation": 0}
    return {"format": "rle", "rle": masks.pack_brush(masks.from_png(region.mask or b"", "A mask in the database"))}


def config(records: list[Any]) -> str:
    """The labelling interface in which the annotations can be seen and gone on with."""
    axes = dict.fromkeys([r.axis for r in records if isinstance(r, Rating)] or ["overall"])
    tags = dict.fromkeys([r.tag for r in records if isinstance(r, Tag)] or ["high quality", "unwanted artifact"])
    known = ("artifact", "misaligned", "watermark", "good")
    labels = dict.fromkeys([*known, *(r.label for r in records if isinstance(r, Region))])
    lines = ["<View>", '  <Image name="image" value="$image"/>', '  <Text name="prompt" value="$prompt"/>']
    lines += [f'  <Rating name={quoteattr(axis)} toName="image" maxRating="5"/>' for axis in axes]
    for shape, tag in (("point", "KeyPointLabels"), ("rect", "RectangleLabels"), ("polygon", "PolygonLabels"),
                       ("mask", "BrushLabels")):  # fmt: skip
        lines += _choices(tag, f'name="{shape}" toName="image"', "Label", labels)
    lines.append('  <Number name="severity" toName="image" perRegion="true" min="0" max="1" step="0.01"/>')
    lines.append('  <TextArea name="note" toName="image" perRegion="true"/>')
    lines += _choices("Choices", 'name="tags" toName="image" choice="multiple"', "Choice", tags)
    lines += _choices("Labels", 'name="words" toName="prompt"', "Label", ("misaligned", "missing", "good"))
    lines.append('  <TextArea name="comment" toName="image"/>')
    return "\n".join([*lines, "</View>", ""])


def _choices(tag: str, attributes: str, item: str, values: Any) -> list[str]:
    return [f"  <{tag} {attributes}>", *(f"    <{item} value={quoteattr(v)}/>" for v in values), f"  </{tag}>"]
