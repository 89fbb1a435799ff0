"""Pictures on disk: lossless, addressed by content, and nothing else than pictures."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feedback_loop.feedback import media
from feedback_loop.feedback.media import BadPicture, Media

from .conftest import picture


def encoded(pixels: np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
def test_a_kept_picture_comes_back_bit_for_bit(tmp_path: Path, channels: int):
    kept = Media(tmp_path)
    assert np.array_equal(kept.pixels(kept.put(picture(channels=channels))), picture(channels=channels))


def test_the_same_pixels_are_one_file_named_by_its_own_hash(tmp_path: Path):
    kept = Media(tmp_path)
    assert kept.put(picture()) == kept.put(media.decode(encoded(picture(), "PNG")))
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert media.content_hash(file.read_bytes()) == f"blake3:{file.stem}"


def test_the_hash_of_the_pixels_survives_new_metadata_but_not_a_new_shape():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("workflow", "{}")
    rewritten = media.decode(encoded(picture(), "PNG", pnginfo=info))
    assert media.pixel_hash(rewritten) == media.pixel_hash(picture())
    square = picture(size=6).reshape(9, 6, 3)
    assert media.pixel_hash(square) != media.pixel_hash(picture(size=6))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_told_by_their_first_bytes(form: str):
    assert media.decode(encoded(picture(), form)).shape == (16, 19, 3)


def test_palettes_grey_and_transparency_become_rgb_or_rgba():
    grey = Image.fromarray(picture()[..., 0])
    for image, channels in ((grey, 3), (grey.convert("P"), 3), (grey.convert("LA"), 4)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert media.decode(buffer.getvalue()).shape == (16, 19, channels)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge: header, no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html>",
        b"GIF89a" + bytes(20),
        b"\x89PNG\r\n\x1a\n",
        bomb(65000, 65000),
        bomb(100_000, 3),
        encoded(picture(size=64), "PNG")[:-500],
        encoded(picture(size=64), "JPEG")[:400],
    ],
)
def test_what_is_foreign_cut_off_or_huge_is_refused(data: bytes):
    with pytest.raises(BadPicture):
        media.decode(data)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        [[0]],
    ],
)
def test_arrays_that_are_no_picture_are_refused(pixels: object):
    with pytest.raises(BadPicture):
        media.checked(pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../../etc/passwd", "blake3:" + "a" * 63 + "/", "blake3:" + "A" * 64, "", "a" * 65])
def test_nothing_but_a_hash_becomes_a_path(tmp_path: Path, name: str):
    with pytest.raises(BadPicture):
        Media(tmp_path).path(name)


def test_a_thumbnail_is_small_and_made_once(tmp_path: Path):
    kept = Media(tmp_path)
    file_hash = kept.put(np.zeros((300, 600, 4), np.uint8))
    first = kept.thumbnail(file_hash)
    with Image.open(io.BytesIO(first)) as small:
        assert (small.format, small.size) == ("JPEG", (256, 128))
    kept.path(file_hash).unlink()
    assert kept.thumbnail(file_hash) == first


def test_a_removed_picture_is_gone_with_its_thumbnail(tmp_path: Path):
    kept = Media(tmp_path)
    file_hash = kept.put(picture())
    kept.thumbnail(file_hash)
    kept.remove(file_hash)
    kept.remove(file_hash)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_write_that_fails_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(media.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Media(tmp_path).put(picture())
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
