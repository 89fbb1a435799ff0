"""COCO's masks by hand-counted runs, its file by its own rules, and annotations of other tools."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedback_loop.feedback.formats import masks, reading, write
from feedback_loop.feedback.marks import Region
from feedback_loop.feedback.media import decode
from feedback_loop.tests.feedback import bundles

PICTURE = bundles.png(random.Random(1), 20, 10)


def test_runs_go_down_the_columns_and_begin_with_what_is_outside() -> None:
    """Columns of [[0, 1], [1, 1], [0, 0]]: 0 1 0 | 1 1 0, so runs of 1, 1, 1, 2, 1."""
    mask = np.array([[0, 255], [255, 255], [0, 0]], np.uint8)
    assert masks.coco_runs(mask) == [1, 1, 1, 2, 1]
    assert masks.coco_runs(np.full((2, 2), 255, np.uint8)) == [0, 4]
    assert masks.coco_runs(np.zeros((2, 2), np.uint8)) == [4]
    assert (masks.from_coco_runs([1, 1, 1, 2, 1], 2, 3, "x") == mask).all()


def spelled(counts: list[int]) -> str:
    """Runs as text: 5 bits a character from the low end, bit 6 for more, from the fourth run on as differences."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != -1 if digit & 16 else value != 0
            text += chr(48 + (digit | 32 if more else digit))
    return text


def test_runs_as_text_are_the_same_runs() -> None:
    """By hand: 5 is chr(53) "5"; 40 = 8 + 1 * 32 is "X1"; the fourth run, 3 after 40 two before: -37, "kN"."""
    assert spelled([5, 40, 6, 3]) == "5X16kN"
    mask = (np.random.default_rng(1).random((50, 70)) > 0.7).astype(np.uint8) * 255
    assert (masks.from_coco_runs(spelled(masks.coco_runs(mask)), 70, 50, "x") == mask).all()


def test_a_file_follows_cocos_rules(tmp_path: Path) -> None:
    """Ids are unique, every annotation names an image and a category, boxes and areas are those of the shapes."""
    bundle = bundles.generated(2, said=140)
    write("coco", bundle, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as packed:
        document = json.loads(packed.read("annotations.json"))
        files = set(packed.namelist())
        grey = [decode(packed.read(name))[..., 0] for name in packed.namelist() if name.startswith("masks/")]
    images, categories = ({row["id"]: row for row in document[name]} for name in ("images", "categories"))
    annotations = document["annotations"]
    assert len({row["id"] for row in annotations}) == len(annotations) == len(bundle.of(Region))
    assert all(row["image_id"] in images and row["category_id"] in categories for row in annotations)
    assert all(row["file_name"] in files for row in images.values())
    runs = [row for row in annotations if isinstance(row["segmentation"], dict)]
    assert len(runs) == len(grey) > 0
    for row, mask in zip(runs, grey, strict=True):
        inside = mask >= 128
        assert row["area"] == inside.sum() == sum(row["segmentation"]["counts"][1::2])
        x, y, width, height = (int(value) for value in row["bbox"])
        assert inside[y : y + height, x : x + width].sum() == row["area"]


def coco(**annotation: Any) -> dict[str, Any]:
    image = {"id": 9, "file_name": "a.png", "width": 20, "height": 10, "coco_url": "http://example.com/a.png"}
    row = {"id": 1, "image_id": 9, "category_id": 3} | annotation
    return {"images": [image], "annotations": [row], "categories": [{"id": 3, "name": "hand"}]}


def read(document: dict[str, Any], tmp_path: Path) -> list[Region]:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("annotations/instances.json", json.dumps(document))
        packed.writestr("images/a.png", PICTURE)
    with reading(tmp_path / "x.zip", "me") as bundle:
        assert all(picture.read is not None for picture in bundle.pictures.values())
        return [region for region, _ in bundle.of(Region)]


@pytest.mark.parametrize(
    ("annotation", "shape", "geometry"),
    [
        ({"bbox": [2, 1, 4, 3]}, "rect", ((0.1, 0.1), (0.3, 0.4))),
        ({"bbox": [-2, 1, 40, 3]}, "rect", ((0.0, 0.1), (1.0, 0.4))),
        ({"segmentation": [[2, 1, 4, 1, 4, 3]], "bbox": [2, 1, 2, 2]}, "polygon", ((0.1, 0.1), (0.2, 0.1), (0.2, 0.3))),
        ({"keypoints": [10, 5, 2, 0, 0, 0]}, "point", ((0.5, 0.5),)),
    ],
    ids=["box", "box beyond the edge", "polygon", "key point, and one that is not labelled"],
)
def test_shapes_of_other_tools_become_regions(
    annotation: dict[str, Any], shape: str, geometry: tuple[tuple[float, float], ...], tmp_path: Path
) -> None:
    [region] = read(coco(**annotation), tmp_path)
    assert (region.shape, region.label, region.rater) == (shape, "hand", "me")
    assert np.allclose(region.geometry, geometry)


def test_masks_of_other_tools_become_regions(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:5, 3:9] = 255
    for counts in (masks.coco_runs(mask), spelled(masks.coco_runs(mask))):
        [region] = read(coco(segmentation={"size": [10, 20], "counts": counts}, iscrowd=1), tmp_path)
        assert region.shape == "mask" and region.mask is not None
        assert (decode(region.mask)[..., 0] == mask).all()


def test_an_object_in_two_parts_is_two_polygons(tmp_path: Path) -> None:
    found = read(coco(segmentation=[[0, 0, 1, 0, 1, 1], [5, 5, 6, 5, 6, 6]]), tmp_path)
    assert [region.shape for region in found] == ["polygon", "polygon"]
