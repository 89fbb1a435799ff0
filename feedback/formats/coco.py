"""COCO's object annotations in a ZIP with the pictures and, for painted marks, 8-bit grey PNG masks.

What COCO has no field for stands in `attributes`, as annotation tools do: rater, severity, comment, time, shape.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ..marks import Ranking, Region, Tag, WordMark
from ..records import Comment, Comparison, Generation, Rating
from . import masks
from .archive import Documents, Sink
from .bundle import BadData, Bundle, Report, leave_kinds, leave_settings
from .guards import list_of, number, rows_of, text
from .sizes import size_of

NAME = "annotations.json"
WHY = "COCO holds places in pictures only"
Point = tuple[float, float]


# --- out -------------------------------------------------------------------------------------------------------------


def write(bundle: Bundle, path: Path) -> Report:
    """Writes the marked regions of all pictures."""
    report = Report()
    leave_kinds(report, bundle, (Rating, Comparison, Ranking, WordMark, Tag, Comment), WHY)
    leave_settings(report, bundle.pictures.values(), (), "there is no field for them")
    regions = bundle.of(Region)
    labels = {label: n for n, label in enumerate(dict.fromkeys(r.label for r, _ in regions), 1)}
    with Sink(path) as sink:
        images, places = [], {}
        for number_, (key, picture) in enumerate(bundle.pictures.items(), 1):
            width, height = size_of(picture)
            places[key] = (number_, width, height)
            name = sink.picture(picture)
            image = {"id": number_, "file_name": name, "width": width, "height": height}
            images.append(image | {"caption": picture.generation.prompt})
        annotations = [
            _annotation(n, region, at, labels[region.label], places[region.image_id], sink)
            for n, (region, at) in enumerate(regions, 1)
        ]
        categories = [_category(n, label) for label, n in labels.items()]
        sink.json(NAME, {"info": {"description": "Marked regions of generated pictures"}, "licenses": [],
                         "images": images, "annotations": annotations, "categories": categories})  # fmt: skip
    report.held.update({"marked regions": len(regions), "pictures": len(images)})
    return report


def _category(number_: int, label: str) -> dict[str, Any]:
    return {"id": number_, "name": label, "supercategory": "feedback", "keypoints": ["point"], "skeleton": []}


def _annotation(
    number_: int, region: Region, at: datetime | None, category: int, place: tuple[int, int, int], sink: Sink
) -> dict[str, Any]:
    image, width, height = place
    row: dict[str, Any] = {"id": number_, "image_id": image, "category_id": category, "iscrowd": 0}
    given = {"shape": region.shape, "rater": region.rater, "severity": region.severity, "comment": region.comment}
    given["at"] = None if at is None else at.astimezone(timezone.utc).isoformat()
    row["attributes"] = {name: value for name, value in given.items() if value is not None}
    if region.shape == "mask":
        row["attributes"]["mask_file"] = name = f"masks/{number_}.png"
        sink.put(name, region.mask or b"")
        return row | _runs(masks.from_png(region.mask or b"", "A mask in the database"))
    points = [(x * width, y * height) for x, y in region.geometry]
    row |= {"bbox": _box(points), "area": _area(region.shape, points), "segmentation": []}
    if region.shape == "point":
        row |= {"keypoints": [*points[0], 2], "num_keypoints": 1}
    if region.shape == "polygon":
        row["segmentation"] = [[value for point in points for value in point]]
    return row


def _runs(mask: np.ndarray) -> dict[str, Any]:
    inside = mask >= 128
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = [0.0, 0.0, 0.0, 0.0]
    if rows.size:
        corners = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
        box = [float(value) for value in corners]
    counts = {"size": list(mask.shape), "counts": masks.coco_runs(mask)}
    return {"bbox": box, "area": int(inside.sum()), "segmentation": counts, "iscrowd": 1}


def _box(points: list[Point]) -> list[float]:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _area(shape: str, points: list[Point]) -> float:
    if shape == "polygon":
        ahead = [*points[1:], points[0]]
        return abs(sum(x * y2 - x2 * y for (x, y), (x2, y2) in zip(points, ahead, strict=True))) / 2
    _, _, width, height = _box(points)
    return width * height


# --- in --------------------------------------------------------------------------------------------------------------


def recognises(documents: Documents) -> bool:
    """Whether a document has COCO's three lists."""
    return any(True for _ in _found(documents))


def _found(documents: Documents):
    for name in documents.named():
        document = documents.get(name)
        if isinstance(document, dict) and {"images", "annotations"} <= set(document):
            yield name, document


def read(documents: Documents, rater: str) -> Bundle:
    """Pictures and the places marked in them. rater: who judged, where the file does not say. Raises BadData."""
    bundle = Bundle()
    for name, document in _found(documents):
        where = name or "The file"
        pictures: dict[Any, tuple[str, int, int]] = {}
        for n, image in enumerate(rows_of(document["images"], f"{where}: images")):
            pictures[_id(image, "id", where)] = _image(bundle, documents, name, image, f"{where}, image {n}")
        labels = {_id(row, "id", where): text(row, "name", where) or "unlabelled"
                  for row in rows_of(document.get("categories"), f"{where}: categories")}  # fmt: skip
        for n, row in enumerate(rows_of(document["annotations"], f"{where}: annotations")):
            place = pictures.get(_id(row, "image_id", where))
            if place is None:
                bundle.report.leave("annotations: their picture is not in the list of images")
                continue
            label = labels.get(row.get("category_id") if not isinstance(row.get("category_id"), (list, dict)) else None)
            _take(bundle, documents, name, row, place, label or "unlabelled", rater, f"{where}, annotation {n}")
    return bundle


def _id(row: dict[str, Any], name: str, where: str) -> Any:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise BadData(f"{where}: {name} must be a whole number or text.")
    return value


def _image(bundle: Bundle, documents: Documents, name: str, image: dict[str, Any], where: str) -> tuple[str, int, int]:
    file = text(image, "file_name", where)
    width, height = number(image, "width", where), number(image, "height", where)
    if file is None or not width or not height or width < 1 or height < 1:
        raise BadData(f"{where}: file_name, width and height must be there.")
    key = documents.picture(bundle, file, Generation(prompt=text(image, "caption", where)), name)
    return key, int(width), int(height)


def _take(
    bundle: Bundle, documents: Documents, name: str, row: dict[str, Any], place: tuple[str, int, int], label: str,
    rater: str, where: str,
) -> None:  # fmt: skip
    key, width, height = place
    given = row.get("attributes") if isinstance(row.get("attributes"), dict) else {}
    who = text(given, "rater", where) or rater  # type: ignore[arg-type]
    rest = (number(given, "severity", where), text(given, "comment", where))  # type: ignore[arg-type]
    at = _time(text(given, "at", where), where)  # type: ignore[arg-type]
    file = text(given, "mask_file", where)  # type: ignore[arg-type]
    mask = documents.member(file, name) if file else None
    if isinstance(row.get("segmentation"), dict) or mask is not None:
        png = mask or masks.to_png(_decoded(row["segmentation"], width, height, where))
        bundle.say(lambda: Region(key, "mask", (), label, who, *rest, png), where, at)
        return
    shapes = _shapes(row, width, height, where)
    bundle.report.leave("annotations: they mark no place", not shapes)
    for shape, geometry in shapes:
        bundle.say(lambda s=shape, g=geometry: Region(key, s, g, label, who, *rest), where, at)  # type: ignore[arg-type]


def _decoded(runs: dict[str, Any], width: int, height: int, where: str) -> np.ndarray:
    if runs.get("size") != [height, width]:
        raise BadData(f"{where}: the mask has the size {str(runs.get('size'))[:40]}, the picture [{height}, {width}].")
    counts = runs.get("counts")
    if not isinstance(counts, (str, list)) or any(isinstance(run, bool) for run in counts):
        raise BadData(f"{where}: counts must be a list of lengths, or text.")
    return masks.from_coco_runs(counts, width, height, where)


def _shapes(row: dict[str, Any], width: int, height: int, where: str) -> list[tuple[str, tuple[Point, ...]]]:
    def fractions(values: list[float]) -> tuple[Point, ...]:
        pairs = zip(values[::2], values[1::2], strict=False)
        return tuple((min(max(x / width, 0.0), 1.0), min(max(y / height, 0.0), 1.0)) for x, y in pairs)

    parts = row.get("segmentation")
    if isinstance(parts, list) and parts:
        for part in parts:
            list_of({"segmentation": part}, "segmentation", (int, float), where)
        return [("polygon", fractions(part)) for part in parts if len(part) >= 6]
    if row.get("keypoints"):
        points = list_of(row, "keypoints", (int, float), where)
        return [("point", fractions(points[i : i + 2])) for i in range(0, len(points) - 2, 3) if points[i + 2]]
    if row.get("bbox"):
        box = list_of(row, "bbox", (int, float), where)
        if len(box) != 4:
            raise BadData(f"{where}: bbox must be x, y, width, height.")
        x, y, w, h = box
        return [("rect", fractions([x, y, x + w, y + h]))]
    return []


def _time(at: str | None, where: str) -> datetime | None:
    try:
        return None if at is None else datetime.fromisoformat(at)
    except ValueError as error:
        raise BadData(f"{where}: {at!r} is no time.") from error
