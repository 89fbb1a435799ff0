"""What we write is what Hugging Face's `datasets` reads, and what it writes we read."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feedback_loop.feedback.formats import FORMATS, BadData, Bundle, reading, write
from feedback_loop.feedback.formats.pickapic import COLUMNS
from feedback_loop.feedback.media import decode
from feedback_loop.feedback.records import Comparison, Rating
from feedback_loop.tests.feedback import bundles

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache in the test's folder, and no look at the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def loaded(kind: str, tmp_path: Path, **files: Any) -> Any:
    return datasets.load_dataset(kind, split="train", cache_dir=str(tmp_path / "cache"), **files)


def written(name: str, bundle: Bundle, tmp_path: Path) -> Path:
    path = tmp_path / f"{name}{FORMATS[name].suffix}"
    write(name, bundle, path)
    return path


def pixels_of(picture: Image.Image) -> bytes:
    return np.asarray(picture.convert("RGB")).tobytes()


def test_datasets_reads_our_pick_a_pic_with_exactly_its_columns_and_types(tmp_path: Path) -> None:
    bundle = bundles.generated(1)
    found = loaded("parquet", tmp_path, data_files=str(written("pick-a-pic", bundle, tmp_path)))
    assert set(found.column_names) == set(COLUMNS)
    types = {name: feature.dtype for name, feature in found.features.items()}
    assert types["jpg_0"] == types["jpg_1"] == "binary" and types["label_0"] == "float64"
    assert types["ranking_id"] == types["user_id"] == "int64" and types["created_at"] == "timestamp[ns]"
    labels = {"left": (1.0, 0.0), "right": (0.0, 1.0), "tie": (0.5, 0.5)}
    compared = [(one, at) for one, at in bundle.of(Comparison) if one.winner in labels]
    assert len(found) == len(compared) > 2
    for row, (one, at) in zip(found, compared, strict=True):
        assert (row["label_0"], row["label_1"]) == labels[one.winner]
        assert row["caption"] == bundle.pictures[one.left].generation.prompt
        assert row["best_image_uid"] == {"left": one.left, "right": one.right, "tie": "tie"}[one.winner]
        assert row["are_different"] == (one.winner != "tie") and row["image_0_url"] == ""
        assert decode(row["jpg_0"]).tobytes() == bundles.pixels(bundle)[one.left]
        assert row["created_at"].replace(tzinfo=at.tzinfo) == at


def pick_a_pic_rows(count: int) -> dict[str, list[Any]]:
    """Rows as the published files have them: JPEG bytes, URLs beside them, numbers for users."""

    def jpeg(shade: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "JPEG")
        return buffer.getvalue()

    return {
        "caption": [f"prompt {n // 2}" for n in range(count)],
        "jpg_0": [jpeg(n) for n in range(count)],
        "jpg_1": [jpeg(100 + n) for n in range(count)],
        "image_0_uid": [f"left-{n}" for n in range(count)],
        "image_1_uid": [f"right-{n}" for n in range(count)],
        "image_0_url": ["https://example.com/a.jpg"] * count,
        "image_1_url": ["https://example.com/b.jpg"] * count,
        "label_0": [(1.0, 0.0, 0.5)[n % 3] for n in range(count)],
        "label_1": [(0.0, 1.0, 0.5)[n % 3] for n in range(count)],
        "has_label": [True] * count,
        "user_id": [n % 2 for n in range(count)],
        "model_0": ["stabilityai/stable-diffusion-2-1"] * count,
    }


def test_a_pick_a_pic_file_that_datasets_wrote_is_read(tmp_path: Path) -> None:
    rows = pick_a_pic_rows(7)
    rows["has_label"][6] = False
    path = tmp_path / "theirs.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(str(path))
    with reading(path, "me") as bundle:
        compared = [one for one, _ in bundle.of(Comparison)]
        assert [one.winner for one in compared] == ["left", "right", "tie"] * 2
        assert [one.rater for one in compared] == ["user 0", "user 1"] * 3
        assert bundle.pictures["left-3"].read is not None
        assert decode(bundle.pictures["left-3"].read()).tobytes() == decode(rows["jpg_0"][3]).tobytes()
        assert bundle.pictures["left-3"].generation.prompt == "prompt 1"
        assert bundle.pictures["left-3"].generation.checkpoint == "stabilityai/stable-diffusion-2-1"
    assert bundle.report.left == {"pairs: nobody labelled them": 1}


def test_nanoseconds_of_another_writer_are_cut_to_what_python_has(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = pick_a_pic_rows(1)
    table = pyarrow.table(rows)
    table = table.append_column("created_at", pyarrow.array([1_700_000_000_123_456_789], pyarrow.timestamp("ns")))
    pyarrow.parquet.write_table(table, tmp_path / "nano.parquet")
    with reading(tmp_path / "nano.parquet", "me") as bundle:
        assert bundle.said[0].at is not None and bundle.said[0].at.microsecond == 123_456


@pytest.mark.parametrize("name", ["parquet", "trl"])
def test_datasets_decodes_our_image_columns(name: str, tmp_path: Path) -> None:
    bundle = bundles.generated(2)
    found = loaded("parquet", tmp_path, data_files=str(written(name, bundle, tmp_path)))
    pixels = bundles.pixels(bundle)
    if name == "parquet":
        assert isinstance(found.features["image"], datasets.Image)
        assert [pixels_of(row["image"]) for row in found] == list(pixels.values())
        assert [row["seed"] for row in found] == [p.generation.seed for p in bundle.pictures.values()]
        said = sum(len(row["ratings"]) for row in found)
        assert said == len(bundle.of(Rating))
        return
    won = [one for one, _ in bundle.of(Comparison) if one.winner in ("left", "right")]
    assert set(found.column_names) == {"prompt", "chosen", "rejected"}
    best = [one.left if one.winner == "left" else one.right for one in won]
    assert [pixels_of(row["chosen"]) for row in found] == [pixels[key] for key in best]


def test_a_preference_file_that_datasets_wrote_is_read(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (4, 4), (n, n, n)) for n in range(4)]
    rows = {"prompt": ["a", "b"], "chosen": pictures[:2], "rejected": pictures[2:]}
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "chosen": datasets.Image(), "rejected": datasets.Image()}
    )
    path = tmp_path / "trl.parquet"
    datasets.Dataset.from_dict(rows, features).to_parquet(str(path))
    with reading(path, "me") as bundle:
        assert [one.winner for one, _ in bundle.of(Comparison)] == ["left", "left"]
        chosen = [bundle.pictures[one.left] for one, _ in bundle.of(Comparison)]
        assert [decode(p.read())[0, 0, 0] for p in chosen if p.read] == [0, 1]
        assert [p.generation.prompt for p in chosen] == ["a", "b"]


def test_datasets_reads_our_imagefolder(tmp_path: Path) -> None:
    bundle = bundles.generated(3)
    folder = tmp_path / "folder"
    with zipfile.ZipFile(written("imagefolder", bundle, tmp_path)) as packed:
        packed.extractall(folder)
    found = loaded("imagefolder", tmp_path, data_dir=str(folder))
    pixels = bundles.pixels(bundle)
    assert sorted(pixels_of(row["image"]) for row in found) == sorted(pixels.values())
    by_pixels = {pixels_of(row["image"]): row for row in found}
    for key, picture in bundle.pictures.items():
        row = by_pixels[pixels[key]]
        assert row["prompt"] == picture.generation.prompt and row["seed"] == picture.generation.seed
        assert len(row["regions"]) == sum(
            one.record.image_id == key for one in bundle.said if "Region" in repr(one.record)
        )


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_imagefolder_of_others_is_read_with_its_captions(kind: str, tmp_path: Path) -> None:
    """`text` is what the training scripts of diffusers call the caption; a column of theirs is named as unknown."""
    lines = {
        "jsonl": '{"file_name": "a.png", "text": "a cat", "aesthetic": 5.5}\n\n{"file_name": "b/b.png", "text": "x"}\n',
        "csv": "file_name,text,aesthetic\r\na.png,a cat,5.5\r\nb/b.png,x,\r\n",
    }
    with zipfile.ZipFile(tmp_path / "theirs.zip", "w") as packed:
        packed.writestr(f"train/metadata.{kind}", lines[kind])
        for name in ("a.png", "b/b.png", "c.png"):
            packed.writestr(f"train/{name}", bundles.png(random.Random(1)))
    with reading(tmp_path / "theirs.zip", "me") as bundle:
        prompts = {key: picture.generation.prompt for key, picture in bundle.pictures.items()}
    assert prompts == {"train/a.png": "a cat", "train/b/b.png": "x", "train/c.png": None}
    assert any("'aesthetic'" in what for what in bundle.report.left)


def test_pictures_that_datasets_left_outside_of_the_file_are_not_looked_for(tmp_path: Path) -> None:
    """An Image feature with paths alone: nothing is opened, and the report says so."""
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    cells = [{"bytes": None, "path": str(tmp_path / "outside.png")}]
    rows = datasets.Dataset.from_dict({"image": cells, "text": ["x"]}, features)
    import pyarrow.parquet

    pyarrow.parquet.write_table(rows.data.table, tmp_path / "paths.parquet")
    with reading(tmp_path / "paths.parquet", "me") as bundle:
        assert bundle.pictures == {}
    assert bundle.report.left == {"pictures: not in the file, and URLs and paths are never followed": 1}


def test_a_parquet_file_whose_images_are_urls_is_refused_by_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "urls.parquet"
    datasets.Dataset.from_dict({"image": ["https://example.com/a.png"], "text": ["x"]}).to_parquet(str(path))
    with pytest.raises(BadData, match="Nothing is fetched"), reading(path, "me"):
        pass


def test_large_strings_and_large_binaries_are_read_like_small_ones(tmp_path: Path) -> None:
    """Other writers, such as pandas and polars, choose Arrow's 64-bit types."""
    import pyarrow
    import pyarrow.parquet

    rows = pick_a_pic_rows(3)
    wide = {"caption": pyarrow.large_string(), "jpg_0": pyarrow.large_binary(), "jpg_1": pyarrow.large_binary()}
    table = pyarrow.table({name: pyarrow.array(column, wide.get(name)) for name, column in rows.items()})
    pyarrow.parquet.write_table(table, tmp_path / "wide.parquet")
    with reading(tmp_path / "wide.parquet", "me") as bundle:
        assert len(bundle.of(Comparison)) == 3
        assert decode(bundle.pictures["left-2"].read()).tobytes() == decode(rows["jpg_0"][2]).tobytes()


def test_pictures_come_out_right_in_any_order_and_over_several_row_groups(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = pick_a_pic_rows(40)
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "groups.parquet", row_group_size=15)
    with reading(tmp_path / "groups.parquet", "me") as bundle:
        for n in [39, 0, 20, 3, 14, 15, 2, 38]:
            assert bundle.pictures[f"right-{n}"].read() == rows["jpg_1"][n]
            assert bundle.pictures[f"left-{n}"].read() == rows["jpg_0"][n]
