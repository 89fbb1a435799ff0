"""Files that were made to do harm, or made wrongly: a sentence for each, nothing fetched, nothing unpacked to disk."""

from __future__ import annotations

import json
import pickle  # noqa: TID251  (to make what is to be refused)
import random
import socket
import stat
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedback_loop.feedback.formats import BadData, guards, masks, reading
from feedback_loop.feedback.formats.bundle import Report
from feedback_loop.feedback.formats.exchange import into_store
from feedback_loop.feedback.formats.parquet import MissingPackage
from feedback_loop.feedback.records import Comment
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.tests.feedback import bundles

PICTURE = bundles.png(random.Random(1))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was about to be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def told(path: Path, name: str | None = None) -> str:
    """The sentence with which the file is refused."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(BadData) as caught, reading(path, "me", name) as bundle:
        bundles.pixels(bundle)
    assert sorted(path.parent.rglob("*")) == before, "nothing is left on disk"
    assert str(caught.value).endswith(".")
    return str(caught.value)


def zipped(path: Path, members: dict[str, bytes | str], compress: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compress) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


# --- kinds of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_is_refused_whatever_its_name(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(pickle.dumps({"a": [1, 2], "b": "text"}, protocol))
    assert "pickle" in told(path)


def test_a_checkpoint_of_torch_is_refused(tmp_path: Path) -> None:
    """The new form is a ZIP with data.pkl in it, the old one a pickle."""
    import torch

    for new in (True, False):
        path = tmp_path / "data.zip"
        torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=new)
        assert "pickle" in told(path)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08", b"7z\xbc\xaf", b"<svg onload=alert(1)>", b"a,b\n1,2\n"]
)
def test_what_is_no_parquet_zip_or_json_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    assert "Parquet, ZIP or JSON" in told(tmp_path / "x.zip")


# --- ZIP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "a//b.png", "./a.png", "x" * 1100]
)
def test_a_member_that_leads_out_of_the_zip_is_refused(name: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "slip.zip", {"metadata.jsonl": '{"file_name": "a.png"}', name: PICTURE})
    assert "leads out of the ZIP" in told(path) or "a name that is refused" in told(path)


def test_a_backslash_in_the_raw_name_of_a_member_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "slip.zip", {"a.png": PICTURE})
    path.write_bytes(path.read_bytes().replace(b"a.png", b"..\\.a"))
    assert "name that is refused" in told(path)


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as packed:
        packed.writestr(link, "/etc/passwd")
    assert "symbolic link" in told(tmp_path / "link.zip")


def test_a_bomb_is_refused_by_its_ratio_before_it_is_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", {"metadata.jsonl": b"0" * 2**24}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16 and "a bomb" in told(path)


def test_a_member_that_is_larger_than_it_says_is_cut_off_or_refused(tmp_path: Path) -> None:
    """The central directory claims 100 bytes; what unpacks to 16 MB is not read past them; the checksum is wrong."""
    path = zipped(tmp_path / "liar.zip", {"metadata.jsonl": b"0" * 2**24}, zipfile.ZIP_DEFLATED)
    data = path.read_bytes().replace(struct.pack("<I", 2**24), struct.pack("<I", 100))
    path.write_bytes(data)
    assert "damaged" in told(path) or "bytes" in told(path)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """Many names for one piece of data: more packed bytes are claimed than the file has."""
    path = zipped(tmp_path / "quilt.zip", {f"{n}.png": b"x" * 1000 for n in range(3)})
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 20, 2**30)
    path.write_bytes(data)
    assert "overlap" in told(path)


def test_doubled_encrypted_and_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "two.zip", "w") as packed:
        packed.writestr("a.png", PICTURE)
        packed.writestr("a.png", PICTURE)
    assert "two members" in told(tmp_path / "two.zip")
    path = zipped(tmp_path / "secret.zip", {"a.png": PICTURE})
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in told(path)
    monkeypatch.setattr(guards, "MAX_MEMBERS", 2)
    assert "at most 2" in told(zipped(tmp_path / "many.zip", {f"{n}.png": PICTURE for n in range(3)}))


def test_a_cut_off_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "cut.zip", {"a.png": PICTURE})
    path.write_bytes(path.read_bytes()[:-30])
    assert "can't be opened" in told(path)


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '[{"data": {"image": NaN}}]',
        '[{"data": 1e999}, {"a": Infinity}]',
        f'[{{"data": {"9" * 10_000}}}]',
        '[{"data": {}, "data": {}}]',
        '[{"data": {}},',
        "{}",
        "[]",
        "[1, 2]",
        '[{"data": 5}]',
        '[{"data": {"image": "a.png"}, "annotations": {"result": 1}}]',
        '[{"data": {"image": "a.png"}, "annotations": [{"result": [{"type": "rating"}]}]}]',
    ],
    ids=lambda text: text[:24],
)
def test_broken_json_and_json_of_no_format_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    told(tmp_path / "x.json")


def test_a_url_is_named_but_never_fetched(store: FeedbackStore, tmp_path: Path) -> None:
    urls = [
        "https://example.com/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "//host/share.png",
        "data:image/png",
    ]
    (tmp_path / "x.json").write_text(json.dumps([{"data": {"image": url}, "annotations": []} for url in urls]))
    with reading(tmp_path / "x.json", "me") as bundle, pytest.raises(BadData, match="URLs are never fetched"):
        into_store(store, bundle, "theirs")
    members = {"d.json": json.dumps([{"prompt": "x", "generations": urls[:2], "ranking": [1, 2]}]), "b.png": PICTURE}
    with reading(zipped(tmp_path / "x.zip", members), "me") as bundle, pytest.raises(BadData, match="never fetched"):
        into_store(store, bundle, "theirs")


# --- values of the formats -------------------------------------------------------------------------------------------

WRONG: list[tuple[str, Any, str]] = [
    ("imagereward", [{"prompt": "x", "generations": ["a.png", "a.png"], "ranking": [1]}], "of one length"),
    ("imagereward", [{"prompt": "x", "generations": "a.png", "ranking": [1]}], "must be a list"),
    ("imagereward", [{"prompt": 5, "generations": ["a.png", "b.png"], "ranking": [1, 2]}], "must be text"),
    ("imagereward", [{"prompt": "x", "generations": ["a.png", "b.png"], "ranking": [True, 2]}], "must be a list"),
    ("hpdv2", [{"prompt": "x", "human_preference": [1], "file_path": ["a.png", "b.png"]}], "two entries"),
    ("hpdv2", [{"prompt": "x", "human_preference": ["1", "0"], "file_path": ["a.png", "b.png"]}], "must be a list"),
    ("hpdv2", [{"prompt": "x", "image_path": ["a.png", "b.png"], "rank": [1, 2, 3]}], "as many ranks"),
    ("coco", {"images": [{"id": 1}], "annotations": []}, "must be there"),
    (
        "coco",
        {"images": [{"id": {}, "file_name": "a.png", "width": 1, "height": 1}], "annotations": []},
        "whole number",
    ),
    ("coco", {"images": "a", "annotations": []}, "list of objects"),
]


@pytest.mark.parametrize(("name", "document", "says"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_values_are_told_with_their_place(name: str, document: Any, says: str, tmp_path: Path) -> None:
    members = {"d.json": json.dumps(document), "a.png": PICTURE, "b.png": PICTURE}
    said = told(zipped(tmp_path / "x.zip", members), name)
    assert says in said and "d.json" in said


def coco_mask(segmentation: Any, width: Any = 16, height: Any = 12) -> dict[str, Any]:
    image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    mark = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}
    return {"images": [image], "annotations": [mark], "categories": [{"id": 1, "name": "x"}]}


@pytest.mark.parametrize(
    "document",
    [
        coco_mask({"size": [12, 16], "counts": [10**9]}),
        coco_mask({"size": [12, 16], "counts": [-5, 197]}),
        coco_mask({"size": [12, 16], "counts": "~~~~~~~~~~~~~~~~"}),
        coco_mask({"size": [12, 16], "counts": ["a"]}),
        coco_mask({"size": [30_000, 40_000], "counts": [1_200_000_000]}, 40_000, 30_000),
        coco_mask({"size": [1, 1], "counts": [1]}),
        coco_mask([["a", 1, 2, 3, 4, 5]]),
    ],
    ids=lambda document: str(document["annotations"][0]["segmentation"])[:40],
)
def test_coco_masks_that_claim_what_they_are_not_are_refused(document: Any, tmp_path: Path) -> None:
    told(zipped(tmp_path / "x.zip", {"d.json": json.dumps(document), "a.png": PICTURE}), "coco")


def brush(rle: Any, width: Any = 16, height: Any = 12) -> list[dict[str, Any]]:
    value = {"format": "rle", "rle": rle, "brushlabels": ["x"]}
    result = {"type": "brushlabels", "value": value, "original_width": width, "original_height": height}
    return [{"data": {"image": "a.png"}, "annotations": [{"result": [result]}]}]


def claiming(count: int, width: int = 16, height: int = 12) -> list[int]:
    """A packed mask whose head claims `count` values."""
    packed = masks.pack_brush(np.full((height, width), 255, np.uint8))
    return [*struct.pack(">I", count), *packed[4:]]


@pytest.mark.parametrize(
    "tasks",
    [
        brush(claiming(10**9)),
        brush(claiming(10**9), 40_000, 6_250),
        brush(claiming(4 * 16 * 12)[:8]),
        brush([300, -1]),
        brush("text"),
        brush(claiming(4 * 16 * 12), "16", 12),
        brush([]),
    ],
    ids=["1e9", "1e9, with a size to match", "cut off", "no bytes", "text", "text for a width", "empty"],
)
def test_brush_marks_that_claim_what_they_are_not_are_refused_without_their_memory(tasks: Any, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"tasks.json": json.dumps(tasks), "a.png": PICTURE})
    tracemalloc.start()
    try:
        told(path)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


def test_formulas_in_a_csv_are_plain_text_and_broken_csv_is_refused(store: FeedbackStore, tmp_path: Path) -> None:
    """What a spreadsheet would run stays what it is: no format that we write is opened by one."""
    formula = "=cmd|' /C calc'!A0"
    table = f'file_name,text\r\na.png,"{formula}"\r\n'
    with reading(zipped(tmp_path / "a.zip", {"metadata.csv": table, "a.png": PICTURE}), "me") as bundle:
        into_store(store, bundle, "theirs")
    assert [image.generation.prompt for image in store.images().items] == [formula]
    assert "no valid CSV" in told(zipped(tmp_path / "b.zip", {"metadata.csv": b"file_name\n\xff\xfe\n"}))
    assert "file_name is missing" in told(zipped(tmp_path / "c.zip", {"metadata.csv": "x\r\n1\r\n"}))
    huge = "file_name,text\r\na.png," + "x" * 200_000 + "\r\n"
    assert "no valid CSV" in told(zipped(tmp_path / "d.zip", {"metadata.csv": huge, "a.png": PICTURE}))


def test_a_scale_that_falls_and_a_rating_off_it_are_left_out_and_named(tmp_path: Path) -> None:
    ratings = [{"raw": 9, "rater": "a"}, {"raw": 1, "rater": "a", "scale_min": 5, "scale_max": 1}]
    row = {"file_name": "a.png", "ratings": ratings, "tags": [{"tag": " ", "rater": "a"}, {"rater": "a"}]}
    with reading(zipped(tmp_path / "a.zip", {"metadata.jsonl": json.dumps(row), "a.png": PICTURE}), "me") as bundle:
        assert bundle.said == [] and len(bundle.pictures) == 1
    assert bundle.report.left == {"that broke a rule": 4}
    assert bundle.report.first_refused is not None and "line 1" in bundle.report.first_refused


def test_nul_and_half_surrogates_from_json_are_refused(tmp_path: Path) -> None:
    for text in ("\\u0000", "\\ud800"):
        row = f'{{"file_name": "a.png", "prompt": "x{text}"}}'
        assert "NUL or half" in told(zipped(tmp_path / "a.zip", {"metadata.jsonl": row, "a.png": PICTURE}))


# --- Parquet ---------------------------------------------------------------------------------------------------------


def table(path: Path, **columns: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def pick_a_pic(**changed: Any) -> dict[str, Any]:
    good = {"caption": ["x"], "jpg_0": [PICTURE], "jpg_1": [PICTURE + b"2"], "label_0": [1.0], "label_1": [0.0]}
    return good | changed


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (pick_a_pic(jpg_0=["https://example.com/a.jpg"]), "Nothing is fetched"),
        (pick_a_pic(caption=[5]), "text is expected"),
        (pick_a_pic(label_0=["left"]), "number is expected"),
        (pick_a_pic(jpg_1=[[1, 2]]), "picture is expected"),
        (pick_a_pic(user_id=[1.5], has_label=["yes"]), "flag is expected"),
        ({"prompt": ["x"], "chosen": ["a cat"], "rejected": ["a dog"]}, "Nothing is fetched"),
        ({"image": [{"url": "https://example.com"}]}, "picture is expected"),
        ({"a": [1], "b": [2]}, "none of"),
        ({"image": [PICTURE], "ratings": ["five"]}, "must be a list of objects"),
        ({"image": [PICTURE], "regions": [["no json"]]}, "no valid JSON"),
        ({"image": [PICTURE], "prompt": [7]}, "must be text"),
        ({"image": [PICTURE], "cfg": [float("nan")]}, "finite number"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_parquet_of_wrong_types_is_told_by_column(columns: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in told(table(tmp_path / "x.parquet", **columns))


@pytest.mark.parametrize("damage", ["tail", "middle", "foot", "head only"])
def test_damaged_parquet_is_refused(damage: str, tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", **pick_a_pic(caption=["a long caption " * 50]))
    data = bytearray(path.read_bytes())
    if damage == "tail":
        data = data[:-20]
    elif damage == "middle":
        data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    elif damage == "foot":
        struct.pack_into("<I", data, len(data) - 8, 2**31 - 1)
    else:
        data = bytearray(b"PAR1")
    path.write_bytes(data)
    said = told(path)
    assert "Parquet" in said


def test_rows_that_repeat_one_large_text_do_not_take_its_memory_each(tmp_path: Path) -> None:
    """40 MB of text in one cell, 1,000 rows: 40 GB if it were copied for each. The first is refused."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["x" * (40 * 2**20)])
    small = pyarrow.array([PICTURE] * 1000)
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": small, "prompt": text}), path)
    assert path.stat().st_size < 20 * 2**20
    tracemalloc.start()
    try:
        assert "characters long" in told(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text.dictionary[0].as_py())
    finally:
        tracemalloc.stop()


def test_without_pyarrow_the_error_says_how_to_install_it_and_zip_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "x.parquet", **pick_a_pic())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackage, match="pip install pyarrow"), reading(path, "me"):
        pass
    with reading(zipped(tmp_path / "a.zip", {"a.png": PICTURE}), "me") as bundle:
        assert len(bundle.pictures) == 1


@pytest.mark.parametrize(
    "data",
    [b"<svg xmlns='http://www.w3.org/2000/svg'/>", PICTURE[:40], b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"GIF89a"],
    ids=["svg", "cut off", "zeros", "gif"],
)
def test_members_that_are_no_pictures_are_left_out_and_named(data: bytes, store: FeedbackStore, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.png": data, "b.png": PICTURE})
    with reading(path, "me") as bundle:
        taken = into_store(store, bundle, "theirs")
    assert taken.pictures == 1 and "The first: picture 'a.png'" in taken.text()


def test_a_picture_of_billions_of_pixels_is_not_decoded(store: FeedbackStore, tmp_path: Path) -> None:
    header = bytearray(PICTURE)
    struct.pack_into(">II", header, 16, 65_000, 65_000)
    path = zipped(tmp_path / "a.zip", {"a.png": bytes(header)})
    with reading(path, "me") as bundle, pytest.raises(BadData, match="that broke a rule"):
        into_store(store, bundle, "theirs")


def test_a_report_tells_what_is_there_and_what_is_not() -> None:
    report = Report()
    report.held.update(pictures=2)
    report.leave("ratings: why", 3)
    report.leave("nothing", 0)
    report.refuse("line 4: bad")
    report.refuse("line 5: worse")
    assert report.text() == (
        "Held: 2 pictures.\nLeft out: 3 ratings: why.\nLeft out: 2 that broke a rule.\nThe first: line 4: bad"
    )


def test_a_comment_of_markup_comes_in_as_text(store: FeedbackStore, tmp_path: Path) -> None:
    markup = "<img src=x onerror=alert(1)>"
    row = {"file_name": "a.png", "comments": [{"text": markup, "rater": "</script>"}]}
    with reading(zipped(tmp_path / "a.zip", {"metadata.jsonl": json.dumps(row), "a.png": PICTURE}), "me") as bundle:
        assert [one for one, _ in bundle.of(Comment)] == [Comment("a.png", markup, "</script>")]
