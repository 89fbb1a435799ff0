"""Label Studio's SDK understands what we write, and we understand what it packs and what people do there."""

from __future__ import annotations

import json
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from feedback_loop.feedback.formats import Bundle, reading, write
from feedback_loop.feedback.formats import masks as packing
from feedback_loop.feedback.formats.bundle import Said
from feedback_loop.feedback.marks import Region, Tag, WordMark
from feedback_loop.feedback.media import decode
from feedback_loop.feedback.records import Comment, Rating
from feedback_loop.tests.feedback import bundles

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that the SDK needs, about themselves
    converter = pytest.importorskip("label_studio_sdk.converter")
    from label_studio_sdk.converter import brush


def written(bundle: Bundle, tmp_path: Path) -> tuple[list[dict[str, Any]], str, Path]:
    """(tasks, labelling interface, folder) of an export."""
    path, folder = tmp_path / "export.zip", tmp_path / "export"
    write("label-studio", bundle, path)
    with zipfile.ZipFile(path) as packed:
        packed.extractall(folder)
    config = (folder / "config.xml").read_text("utf-8")
    return json.loads((folder / "tasks.json").read_text("utf-8")), config, folder


def blobs(seed: int, height: int, width: int) -> np.ndarray:
    """A mask as a brush leaves it: discs with a soft edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width))
    for _ in range(3):
        distance = np.hypot(y - rng.integers(0, height), x - rng.integers(0, width))
        mask = np.maximum(mask, np.clip((rng.integers(3, 9) - distance) * 64, 0, 255))
    return mask.astype(np.uint8)


@pytest.mark.parametrize(
    "mask",
    [
        blobs(1, 40, 50),
        np.zeros((7, 5), np.uint8),
        np.full((300, 400), 255, np.uint8),
        np.random.default_rng(3).integers(0, 256, (9, 11), dtype=np.uint8),
        np.array([[0, 255]], np.uint8),
    ],
    ids=["discs", "empty", "full, longer than a run may be", "noise", "two pixels"],
)
def test_masks_are_packed_as_the_sdk_unpacks_them_and_the_other_way_round(mask: np.ndarray) -> None:
    height, width = mask.shape
    theirs = brush.decode_rle(packing.pack_brush(mask)).reshape(height, width, 4)
    assert (theirs == mask[..., None]).all(), "all four channels carry the mask"
    packed = brush.encode_rle(np.repeat(mask.reshape(-1), 4))
    assert (packing.unpack_brush(list(packed), width, height, "x") == mask).all()


def test_the_sdk_finds_our_labels_and_results_by_the_labelling_interface(tmp_path: Path) -> None:
    bundle = bundles.generated(1)
    tasks, config, _ = written(bundle, tmp_path)
    names = {element.get("name") for element in ElementTree.fromstring(config).iter() if element.get("name")}
    used = {result["from_name"] for task in tasks for a in task["annotations"] for result in a["result"]}
    assert used <= names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from label_studio_sdk.label_interface import LabelInterface
    interface = LabelInterface(config)
    assert used <= {control.name for control in interface.controls}


def test_the_sdks_converter_makes_the_same_boxes_and_polygons_as_we_do(tmp_path: Path) -> None:
    """Its COCO and our COCO of the same bundle: equal boxes in pixels, by picture and label.

    The SDK converts one kind of data at a time, so it is told the tags that mark pictures; and it makes one category
    of all labels that key points can have, so these are taken out of the interface here.
    """
    bundle = bundles.generated(2, said=140)
    bundle.said = [one for one in bundle.said if getattr(one.record, "shape", None) in ("rect", "polygon")]
    assert len(bundle.said) >= 4
    _, config, folder = written(bundle, tmp_path)
    view = ElementTree.fromstring(config)
    for points in view.findall("KeyPointLabels"):
        view.remove(points)
    config = ElementTree.tostring(view, "unicode")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = converter.Converter(config, str(folder), output_tags=["rect", "polygon"], download_resources=False)
        made.convert_to_coco(str(folder / "tasks.json"), str(tmp_path / "coco"), is_dir=False)
    theirs = json.loads((tmp_path / "coco" / "result.json").read_text("utf-8"))
    write("coco", bundle, tmp_path / "ours.zip")
    with zipfile.ZipFile(tmp_path / "ours.zip") as packed:
        ours = json.loads(packed.read("annotations.json"))
    assert boxes(theirs) == boxes(ours) and len(boxes(ours)) == len(bundle.said)


def boxes(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    labels = {row["id"]: row["name"] for row in document["categories"]}
    files = {row["id"]: row["file_name"].rsplit("/", 1)[-1] for row in document["images"]}
    rows = document["annotations"]
    return sorted(
        (files[row["image_id"]], labels[row["category_id"]], *(round(value, 3) for value in row["bbox"]))
        for row in rows
    )


def test_the_sdk_unpacks_our_brush_marks_to_the_pixels_of_the_mask(tmp_path: Path) -> None:
    bundle = bundles.generated(1)
    key = next(iter(bundle.pictures))
    mask = bundles.png(random.Random(5), grey=True)
    bundle.said = [Said(Region(key, "mask", (), "artifact", "ana", mask=mask))]
    tasks, _, _ = written(bundle, tmp_path)
    result = next(a["result"][0] for task in tasks for a in task["annotations"])
    found = brush.decode_rle(result["value"]["rle"]).reshape(12, 16, 4)[..., 3]
    assert (found == decode(mask)[..., 0]).all()


def test_what_people_did_in_label_studio_comes_back_under_their_names(tmp_path: Path) -> None:
    """An export of Label Studio: its own paths, `completed_by` as object or number, times with Z, cancelled work."""
    size = {"original_width": 200, "original_height": 100, "image_rotation": 0}
    place = {"x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0, "rotation": 0}
    results = [
        {"id": "a", "type": "rectanglelabels", "from_name": "rect", "to_name": "image",
         "value": place | {"rectanglelabels": ["artifact"]}, **size},
        {"id": "a", "type": "textarea", "from_name": "note", "to_name": "image", "value": place | {"text": ["ugly"]}},
        {"id": "a", "type": "number", "from_name": "severity", "to_name": "image", "value": place | {"number": 0.5}},
        {"id": "b", "type": "rating", "from_name": "overall", "to_name": "image", "value": {"rating": 4}},
        {"id": "c", "type": "choices", "from_name": "tags", "to_name": "image", "value": {"choices": ["x", "y"]}},
        {"id": "d", "type": "labels", "from_name": "words", "to_name": "prompt",
         "value": {"start": 2, "end": 5, "text": "red", "labels": ["missing"]}},
        {"id": "e", "type": "textarea", "from_name": "comment", "to_name": "image", "value": {"text": ["fine"]}},
        {"id": "f", "type": "ellipselabels", "from_name": "z", "to_name": "image", "value": {}},
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]  # fmt: skip
    tasks = [
        {
            "id": 7,
            "data": {"image": "/data/upload/1/ab12cd34-cat.png", "prompt": "a red cat"},
            "annotations": [
                {"completed_by": {"id": 3, "email": "ana@example.com"}, "created_at": "2025-01-31T12:00:00.123456Z",
                 "result": results},
                {"completed_by": 4, "result": [results[3]]},
                {"completed_by": 4, "was_cancelled": True, "result": [results[3]]},
            ],
            "predictions": [{"result": [], "model_version": "x"}],
        }
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "back.zip", "w") as packed:
        packed.writestr("project.json", json.dumps(tasks))
        packed.writestr("images/ab12cd34-cat.png", bundles.png(random.Random(1)))
    with reading(tmp_path / "back.zip", "me") as bundle:
        said = {type(one.record): one for one in bundle.said if one.record.rater == "ana@example.com"}
    key = "images/ab12cd34-cat.png"
    assert list(bundle.pictures) == [key] and bundle.pictures[key].read is not None
    who = "ana@example.com"
    region = said[Region].record
    assert region == Region(key, "rect", region.geometry, "artifact", who, 0.5, "ugly")
    assert np.allclose(region.geometry, [(0.1, 0.2), (0.4, 0.6)])
    assert said[Rating].record == Rating(key, 4, who) and said[Comment].record == Comment(key, "fine", who)
    assert said[WordMark].record == WordMark(key, 1, "red", "missing", who)
    assert [one.record.tag for one in bundle.said if isinstance(one.record, Tag)] == ["x", "y"]
    assert [one.record.rater for one in bundle.said if isinstance(one.record, Rating)] == [who, "user 4"]
    assert said[Rating].at is not None and said[Rating].at.isoformat() == "2025-01-31T12:00:00.123456+00:00"
    assert sorted(bundle.report.left.values()) == [1, 1, 1, 1]


def test_a_turned_rectangle_becomes_the_polygon_of_its_corners(tmp_path: Path) -> None:
    """A quarter turn clockwise about the upper left corner (100, 20) of a 40 x 10 box in a picture of 200 x 100 pixels.

    Its width then runs down and its height to the left: (100, 20), (100, 60), (90, 60), (90, 20).
    """
    value = {"x": 50, "y": 20, "width": 20, "height": 10, "rotation": 90, "rectanglelabels": ["x"]}
    result = {"type": "rectanglelabels", "value": value, "original_width": 200, "original_height": 100}
    tasks = [{"data": {"image": "a.png"}, "annotations": [{"result": [result]}]}]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    with reading(tmp_path / "x.json", "me") as bundle:
        [(region, _)] = bundle.of(Region)
    corners = [(x * 200, y * 100) for x, y in region.geometry]
    assert region.shape == "polygon" and np.allclose(corners, [(100, 20), (100, 60), (90, 60), (90, 20)])


def test_axes_tags_and_labels_of_any_letters_make_a_labelling_interface_that_parses(tmp_path: Path) -> None:
    bundle = bundles.generated(1)
    key = next(iter(bundle.pictures))
    odd = """"><script>&'"""
    bundle.said = [Said(Rating(key, 3, "ana", odd)), Said(Tag(key, odd, "ana")),
                   Said(Region(key, "point", ((0.5, 0.5),), odd, "ana"))]  # fmt: skip
    _, config, _ = written(bundle, tmp_path)
    values = {element.get("value") or element.get("name") for element in ElementTree.fromstring(config).iter()}
    assert odd in values and "script" not in {element.tag for element in ElementTree.fromstring(config).iter()}
