"""PNG files of an output folder: what is read from honest ones, and what dishonest ones are refused for."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from feedback_loop.feedback import history, media
from feedback_loop.feedback.media import BadPicture

GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red kite", "clip": ["1", 1]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {
            **{"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["6", 0]},
            **{"seed": 2**64 - 1, "steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"},
            "denoise": 1.0,
        },
    },
    "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
    "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "kites/red_%date%"}},
    "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 8, "height": 8, "batch_size": 1}},
}
WORKFLOW = {"nodes": [], "links": []}


def saved(path: Path, **texts: str) -> Path:
    """A picture of 8 x 8 pixels as ComfyUI saves it, with these text chunks."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(path, pnginfo=info)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(path: Path, *chunks: bytes) -> Path:
    """The picture with chunks put in after its header, which ends at byte 33."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"".join(chunks) + data[33:])
    return path


def test_a_picture_that_comfyui_saved_tells_how_it_was_made(tmp_path: Path):
    path = saved(tmp_path / "red_1_.png", prompt=json.dumps(GRAPH), workflow=json.dumps(WORKFLOW))
    past = history.read(path)
    made = past.generation
    assert (made.prompt, made.seed, made.steps, made.checkpoint) == ("a red kite", str(2**64 - 1), 20, "a.safetensors")
    assert (made.node_id, made.api_prompt, made.workflow) == ("5", GRAPH, WORKFLOW)
    assert past.data == path.read_bytes()


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iTXt packed"])
def test_packed_and_international_texts_are_read_too(tmp_path: Path, kind: str):
    text = json.dumps(GRAPH).encode()
    content = {
        "zTXt": b"prompt\0\0" + zlib.compress(text),
        "iTXt": b"prompt\0\0\0en\0Prompt\0" + text,
        "iTXt packed": b"prompt\0\1\0\0\0" + zlib.compress(text),
    }[kind]
    path = with_chunk(saved(tmp_path / "red.png"), chunk(kind[:4].encode(), content))
    assert history.read(path).generation.prompt == "a red kite"


@pytest.mark.parametrize("text", ["", "a red kite, 8k", "[1, 2]", '"text"', "{", "null", "\x80"])
def test_a_picture_of_another_program_is_kept_without_a_graph(tmp_path: Path, text: str):
    made = history.read(saved(tmp_path / "a.png", prompt=text, workflow=text)).generation
    assert (made.prompt, made.api_prompt, made.workflow, made.node_id) == (None, None, None, None)


def test_two_savers_of_one_graph_are_told_apart_by_their_prefix(tmp_path: Path):
    """Node 9 saves what a second sampler made with another prompt; a file called blue_... is its."""
    second = {
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "a blue kite", "clip": ["1", 1]}},
        "8": {**GRAPH["3"], "inputs": {**GRAPH["3"]["inputs"], "positive": ["7", 0]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "blue"}},
    }
    text = json.dumps({**GRAPH, **second})
    prompts = [
        history.read(saved(tmp_path / name, prompt=text)).generation.prompt for name in ("red_1.png", "blue_1.png")
    ]
    assert prompts == ["a red kite", "a blue kite"]
    renamed = history.read(saved(tmp_path / "x.png", prompt=text)).generation
    assert (renamed.prompt, renamed.checkpoint, renamed.node_id) == (None, "a.safetensors", None)


def test_a_chunk_of_50_mb_is_refused_by_its_size(tmp_path: Path):
    path = with_chunk(saved(tmp_path / "a.png"), chunk(b"tEXt", b"workflow\0" + b"[" * 50_000_000))
    with pytest.raises(BadPicture, match="50000009 bytes"):
        history.read(path)


@pytest.mark.parametrize("head", [b"zTXtworkflow\0\0", b"iTXtworkflow\0\1\0\0\0"])
def test_a_text_that_unpacks_to_far_more_is_refused(tmp_path: Path, head: bytes):
    """64 MB of one letter pack into about 64 kB, which is within what a chunk may have."""
    packing = zlib.compressobj(9)
    packed = b"".join(packing.compress(b"a" * 2**20) for _ in range(64)) + packing.flush()
    path = with_chunk(saved(tmp_path / "a.png"), chunk(head[:4], head[4:] + packed))
    with pytest.raises(BadPicture, match="larger than"):
        history.read(path)


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "no PNG"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, "no PNG"),
        (history.SIGNATURE, "cut off"),
        (history.SIGNATURE + struct.pack(">I4s", 2**32 - 1, b"tEXt") + b"\0" * 8, "larger than the file"),
        (history.SIGNATURE + header(65_000, 65_000) + chunk(b"IEND", b""), "65000 x 65000"),
        (history.SIGNATURE + header(0, 8) + chunk(b"IEND", b""), "0 x 8"),
        (history.SIGNATURE + chunk(b"IHDR", b"\0") + chunk(b"IEND", b""), "malformed"),
        (history.SIGNATURE + header(8, 8) + chunk(b"zTXt", b"prompt\0\0no zlib") + chunk(b"IEND", b""), "broken"),
        (history.SIGNATURE + chunk(b"fdAT", b"") * (history.MAX_CHUNKS + 1), "chunks"),
    ],
)
def test_what_is_no_sound_png_is_refused_with_a_reason(tmp_path: Path, data: bytes, reason: str):
    (path := tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BadPicture, match=reason):
        history.read(path)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path):
    path = saved(tmp_path / "a.png", prompt=json.dumps(GRAPH))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadPicture):
            history.read(path)


def test_a_graph_nested_too_deeply_is_refused(tmp_path: Path):
    with pytest.raises(BadPicture, match="nested too deeply"):
        history.read(saved(tmp_path / "a.png", prompt='{"a":' * 100_000))


@pytest.mark.parametrize(
    "graph", [{"5": None}, {"5": {"inputs": 3}}, {"5": {"inputs": {"filename_prefix": 1}}}, {"": {}}]
)
def test_a_malformed_graph_gives_no_provenance(tmp_path: Path, graph: dict):
    assert history.read(saved(tmp_path / "a.png", prompt=json.dumps(graph))).generation.prompt is None


def test_a_graph_of_ten_thousand_savers_is_not_walked_from_each(tmp_path: Path):
    graph = {str(i): {"class_type": "S", "inputs": {"filename_prefix": "", "images": ["x", 0]}} for i in range(10_000)}
    assert history.savers(graph, "a.png") == []


def test_links_and_pipes_are_listed_and_then_refused(tmp_path: Path):
    outside = saved(tmp_path / "outside" / "secret.png")
    folder = tmp_path / "output"
    plain = saved(folder / "sub" / "plain.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "elsewhere").symlink_to(outside.parent)
    os.mkfifo(folder / "pipe.PNG")
    found = history.files(folder)
    assert {path.name for path in found} == {"plain.png", "link.png", "pipe.PNG"}
    assert history.read(plain)
    for name in ("link.png", "pipe.PNG"):
        with pytest.raises(BadPicture, match="not followed"):
            history.read(folder / name)


def test_only_png_files_outside_hidden_folders_are_listed_oldest_first(tmp_path: Path):
    for age, name in enumerate(["new.png", "sub/old.PNG", ".hidden/x.png", "a.txt"]):
        path = saved(tmp_path / f"{name}.png").rename(tmp_path / name)
        os.utime(path, (1000 - age, 1000 - age))
    assert [path.name for path in history.files(tmp_path)] == ["old.PNG", "new.png"]


def test_a_file_that_vanished_or_grew_too_large_is_refused(tmp_path: Path):
    with pytest.raises(BadPicture, match="can't be read"):
        history.read(tmp_path / "gone.png")
    with (huge := tmp_path / "huge.png").open("wb") as file:
        file.truncate(media.MAX_BYTES + 1)
    with pytest.raises(BadPicture, match="at most"):
        history.read(huge)


def test_what_is_kept_of_the_file_is_the_picture_alone(tmp_path: Path):
    past = history.read(saved(tmp_path / "a.png", prompt=json.dumps(GRAPH)))
    with Image.open(io.BytesIO(media.encode_png(media.decode(past.data)))) as kept:
        assert kept.info == {}
