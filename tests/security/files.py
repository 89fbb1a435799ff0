"""Files that strangers hand over: pictures with graphs in them, data sets, rewards."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251  (to make what is to be refused)
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'


# --- pictures --------------------------------------------------------------------------------------------------------


def png(size: tuple[int, int] = (8, 8), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(*chunks: bytes) -> bytes:
    """A sound picture with these after its header, which ends at byte 33."""
    data = png()
    return data[:33] + b"".join(chunks) + data[33:]


def claiming(width: int, height: int) -> bytes:
    """A header that says so, and next to nothing behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return SIGNATURE + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def packed_text(kind: bytes, megabytes: int = 64) -> bytes:
    packing = zlib.compressobj(9)
    packed = b"".join(packing.compress(b"a" * 2**20) for _ in range(megabytes)) + packing.flush()
    head = {b"zTXt": b"workflow\0\0", b"iTXt": b"workflow\0\1\0\0\0"}[kind]
    return with_chunks(chunk(kind, head + packed))


def frames(count: int) -> bytes:
    """An animation of so many pictures of one pixel each."""
    control = [chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * i, 1, 1, 0, 0, 1, 10, 0, 0)) for i in range(count)]
    data = chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(b"\0\0\0\0"))
    return with_chunks(chunk(b"acTL", struct.pack(">II", count, 0)), *(part + data for part in control))


PICTURES: dict[str, Callable[[], bytes]] = {
    "svg.png": lambda: SVG,
    "html.png": lambda: b"<html><script>alert(1)</script></html>",
    "gif.png": lambda: b"GIF89a" + bytes(64),
    "empty.png": lambda: b"",
    "cut.png": lambda: png((64, 64))[:-40],
    "cut in the header.png": lambda: png()[:20],
    "a length beyond the end.png": lambda: SIGNATURE + struct.pack(">I4s", 2**31 - 1, b"IHDR") + bytes(64),
    "65000 x 65000.png": lambda: claiming(65000, 65000),
    "144 MP in 420 kB.png": lambda: png((12_000, 12_000), "L", compress_level=9),
    "no width.png": lambda: claiming(0, 8),
    "ztxt.png": lambda: packed_text(b"zTXt"),
    "itxt.png": lambda: packed_text(b"iTXt"),
    "a workflow of 50 MB.png": lambda: with_chunks(chunk(b"tEXt", b"workflow\0" + b"[" * 50_000_000)),
    "a deep graph.png": lambda: with_chunks(chunk(b"tEXt", b"prompt\0" + b'{"a":' * 100_000)),
    "200,000 chunks.png": lambda: with_chunks(chunk(b"tEXt", b"a\0b") * 200_000),
}
"""What lies in the output folder under these names, none of which is to be taken in."""


def seeded(seed: int) -> bytes:
    """A picture with a graph whose sampler has this seed."""
    link = {"model": ["1", 0], "positive": ["1", 0], "negative": ["1", 0], "latent_image": ["1", 0]}
    sampler = {"class_type": "KSampler", "inputs": {**link, "seed": seed, "steps": 1, "cfg": 1.0}}
    saver = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "seed"}}
    return with_chunks(chunk(b"tEXt", b"prompt\0" + json.dumps({"3": sampler, "5": saver}).encode()))


STRANGE_PICTURES: dict[str, Callable[[], bytes]] = {
    "seed 2^64-1.png": lambda: seeded(2**64 - 1),
    "seed -1.png": lambda: seeded(-1),
    "seed 2^200.png": lambda: seeded(2**200),
    "10,000 frames.png": lambda: frames(10_000),
}
"""Odd, but pictures: they may be taken in, as still pictures and with a seed that both databases hold, or refused."""


# --- data sets -------------------------------------------------------------------------------------------------------


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], compress: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def rows(*found: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in found)


def said(name: str, picture: bytes | None = None, **row: Any) -> bytes:
    """An imagefolder of one picture that was given a star, under another name or with other content."""
    rating = {"raw": 1, "scale_min": 0, "scale_max": 1, "axis": "overall", "rater": "r"}
    line = rows({"file_name": name, "ratings": [rating], **row})
    members = [] if picture is None else [(name, picture)]
    return zipped(("metadata.jsonl", line), *members)


def link(name: str, to: str) -> bytes:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return zipped((member, to.encode()), ("metadata.jsonl", rows({"file_name": name})))


def label_studio(original: int, runs: list[int]) -> bytes:
    """A brush mark of Label Studio that claims a picture of `original` x `original`."""
    value = {"format": "rle", "rle": runs, "brushlabels": ["artifact"]}
    result = {
        **{"id": "a", "type": "brushlabels", "from_name": "b", "to_name": "image", "value": value},
        **{"original_width": original, "original_height": original, "image_rotation": 0},
    }
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [result]}]}
    return zipped(("tasks.json", json.dumps([task]).encode()), ("a.png", png()))


def table(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


PICK = {"caption": ["x"], "label_0": [1.0], "label_1": [0.0], "jpg_0": [b"x"], "jpg_1": [b"y"]}
DATA_SETS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a picture": png,
    "SVG": lambda: SVG,
    "a pickle": lambda: pickle.dumps({"a": 1}),
    "a pickle of protocol 0": lambda: pickle.dumps({"a": 1}, 0),
    "a checkpoint of torch": lambda: zipped(("archive/data.pkl", pickle.dumps(1)), ("archive/version", b"3")),
    "a safetensors file": lambda: struct.pack("<Q", 2) + b"{}",
    "zip-slip": lambda: said("../../../../escaped.png", png()),
    "zip-slip of Windows": lambda: said("..\\..\\escaped.png", png()),
    "an absolute member": lambda: said("/tmp/escaped.png", png()),
    "a drive": lambda: said("C:/escaped.png", png()),
    "a symlink": lambda: link("a.png", "../../../secret.txt"),
    "a bomb": lambda: zipped(("metadata.jsonl", b"{}"), ("a.png", bytes(2**26)), compress=zipfile.ZIP_DEFLATED),
    "a bomb of JSON": lambda: zipped(("metadata.jsonl", b" " * 2**26), compress=zipfile.ZIP_DEFLATED),
    "a cut ZIP": lambda: said("a.png", png())[:-30],
    "deep JSON": lambda: b"[" * 100_000,
    "10,000 digits": lambda: b'[{"id": ' + b"9" * 10_000 + b"}]",
    "a key twice": lambda: b'[{"id": 1, "id": 2}]',
    "NaN": lambda: b'[{"prompt": NaN}]',
    "Label Studio, 10^9 pixels": lambda: label_studio(31_623, [0, 0, 0, 8, 255]),
    "Label Studio, a size that overflows": lambda: label_studio(2**62, [0, 0, 0, 8, 255]),
    "Label Studio, runs of letters": lambda: label_studio(8, ["a", None, -1, 10**30]),  # type: ignore[list-item]
    "an SVG as PNG": lambda: said("a.png", SVG),
    "a picture of 65000 x 65000": lambda: said("a.png", claiming(65000, 65000)),
    "a picture that is elsewhere": lambda: said("file:///etc/passwd"),
    "a picture of the web": lambda: said("http://127.0.0.1:9/a.png"),
    "a picture by its path": lambda: said("/etc/passwd"),
    "a path above": lambda: said("../../secret.png"),
    "parquet of wrong types": lambda: table({**PICK, "label_0": ["one"], "caption": [1]}),
    "parquet of URLs": lambda: table({**PICK, "jpg_0": ["http://127.0.0.1:9/a.jpg"], "jpg_1": ["file:///etc/passwd"]}),
    "parquet of no pictures": lambda: table(PICK),
    "parquet of unknown columns": lambda: table({"__class__": [1], "path": ["/etc/passwd"]}),
    "half a parquet": lambda: table(PICK)[:-8],
    "parquet in name": lambda: b"PAR1" + bytes(100) + b"PAR1",
}
"""Uploads of which nothing is to be taken in."""


# --- rewards ---------------------------------------------------------------------------------------------------------

LENGTH = 8  # bytes of the header's length


def tensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def reward(about: Any, entries: dict[str, Any] | None = None, data: bytes = bytes(4)) -> bytes:
    text = about if isinstance(about, str) else json.dumps(about)
    one = {"none": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return tensors({"__metadata__": {"feedback_loop.reward": text}, **(one if entries is None else entries)}, data)


def colour(**settings: Any) -> dict[str, Any]:
    plain = {"measure": "brightness", "direction": 1, "target": None}
    return {"format": 1, "kind": "colour", "settings": {**plain, **settings}}


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def vectors(**shapes: list[int]) -> dict[str, Any]:
    """Entries of float tensors that lie one behind the other."""
    found, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        found[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    return found


def kind(of: str, /, **settings: Any) -> dict[str, Any]:
    return {"format": 1, "kind": of, "settings": settings}


WISH = {"encoder": "e", "name": "n", "scale": 100.0, "enough": 10.0, "steady": True}
TASTE = {
    "format": 1,
    "kind": "taste",
    "settings": {"encoder": "e", "caution": 0.0, "facts": {}, "name": "n"},
}
REWARDS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a pickle": lambda: pickle.dumps({"a": 1}),
    "a header of 2^63": lambda: tensors(b"{}", length=2**63),
    "a header of 2^64-1": lambda: tensors(b"{}", length=2**64 - 1),
    "a header longer than the file": lambda: tensors(b"{}", length=100_000),
    "no JSON": lambda: tensors(b"{" * 64),
    "deep JSON": lambda: tensors(b'{"a":' * 100_000),
    "no reward": lambda: tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "overlapping tensors": lambda: reward(
        colour(), {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, bytes(8)
    ),
    "offsets beyond the end": lambda: reward(
        colour(), {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ),
    "a shape that overflows": lambda: reward(
        colour(), {"a": {"dtype": "F32", "shape": [2**63 - 1, 2**63 - 1], "data_offsets": [0, 4]}}
    ),
    "settings nested deeply": lambda: reward('{"format": 1, "kind": ' + "[" * 100_000),
    "settings of half an object": lambda: reward('{"format": 1'),
    "a list as settings": lambda: reward([1]),
    "a kind that is a class": lambda: reward({"format": 1, "kind": "__class__", "settings": {}}),
    "a kind that is a list": lambda: reward({"format": 1, "kind": ["colour"], "settings": {}}),
    "settings that are none": lambda: reward({"format": 1, "kind": "colour", "settings": None}),
    "settings of dunder keys": lambda: reward({"format": 1, "kind": "colour", "settings": {"__init__": 1}}),
    "an unknown measure": lambda: reward(colour(measure="__globals__")),
    "a measure that is a list": lambda: reward(colour(measure=["brightness"])),
    "a target that is a text": lambda: reward(colour(target="bright")),
    "a target that is an object": lambda: reward(colour(target={})),
    "a direction that is a text": lambda: reward(colour(direction="up")),
    "weights that are NaN": lambda: reward(colour(), vectors(none=[1]), floats(float("nan"))),
    "a taste without weights": lambda: reward(TASTE),
    "a taste of dunder keys": lambda: reward(TASTE, vectors(__init__=[1], __class__=[1]), bytes(8)),
    "a taste of wrong shapes": lambda: reward(
        TASTE, vectors(centre=[2], scale=[3], weight=[2], root=[2, 2]), bytes(4 * 11)
    ),
    "a taste of NaN": lambda: reward(
        TASTE, vectors(centre=[1], scale=[1], weight=[1], root=[1, 1]), floats(0, 1, float("nan"), 1)
    ),
    "a taste of no caution": lambda: reward(
        {**TASTE, "settings": {**TASTE["settings"], "caution": "none"}},
        vectors(centre=[1], scale=[1], weight=[1], root=[1, 1]), floats(0, 1, 1, 1),
    ),
    "a palette that is a text": lambda: reward(kind("palette", colours="red", direction=1)),
    "a palette of no colours": lambda: reward(kind("palette", colours=[], direction=1)),
    "a palette of a thousand colours": lambda: reward(kind("palette", colours=[[0, 0, 0]] * 1000, direction=1)),
    "a palette without end": lambda: reward(kind("palette", colours=[["1e999", 0, 0]], direction=7)),
    "a wish without its texts": lambda: reward(kind("text", **WISH)),
    "a wish of wrong shapes": lambda: reward(kind("text", **WISH), vectors(texts=[3, 2]), bytes(24)),
    "a wish for an encoder that is a list": lambda: reward(
        kind("text", **{**WISH, "encoder": []}), vectors(texts=[2, 2]), bytes(16)
    ),
    "an aesthetic head without weights": lambda: reward(kind("aesthetic", encoder="e", bias=0, name="n")),
    "an aesthetic head of a matrix": lambda: reward(
        kind("aesthetic", encoder="e", bias=0, name="n"), vectors(weight=[2, 2]), bytes(16)
    ),
    "a detector without weights": lambda: reward(kind("watermark", margin=3.0, made="own")),
    "a detector of wrong shapes": lambda: reward(
        kind("watermark", margin=3.0, made="own"), vectors(**{"cell.weight": [4]}), bytes(16)
    ),
    "a detector that nobody made": lambda: reward(kind("watermark", margin=3.0, made="__class__")),
    "a detector made by a list": lambda: reward(kind("watermark", margin=3.0, made=["own"])),
    "a penalty with a text as margin": lambda: reward({"format": 1, "kind": "watermark", "settings": {"margin": "x"}}),
}  # fmt: skip
"""Files of models/feedback_rewards, each with a name of its own: none gives a reward."""


def reward_file(name: str) -> str:
    return f"{name}.safetensors"
