"""Pictures on disk: a lossless copy of our own, addressed by its content, and thumbnails.

ComfyUI's temporary folder is wiped and people tidy their output folder; what was judged must stay to be learned from.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import numpy as np

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20
MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
THUMBNAIL = 256  # pixels of the longer side


class BadPicture(ValueError):
    """Bytes or an array that are no picture we keep; the message says why."""


def _format_of(data: bytes) -> str:
    for magic, name in MAGIC.items():
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise BadPicture("The file is no PNG, JPEG or WebP picture.")


def decode(data: bytes) -> np.ndarray:
    """Pixels (H, W, 3) or, with transparency, (H, W, 4), uint8. Raises BadPicture for what is foreign, cut or huge."""
    from PIL import Image, UnidentifiedImageError

    if len(data) > MAX_BYTES:
        raise BadPicture(f"The file has {len(data)} bytes; at most {MAX_BYTES} are read.")
    try:
        with Image.open(io.BytesIO(data), formats=[_format_of(data)]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise BadPicture(f"The picture has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS}.")
            transparent = "A" in picture.getbands() or "transparency" in picture.info
            return np.asarray(picture.convert("RGBA" if transparent else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadPicture):
            raise
        raise BadPicture(f"The picture can't be decoded: {error}.") from error


def decode_mask(data: bytes) -> np.ndarray:
    """Pixels (H, W), uint8, of an 8-bit grey PNG. Raises BadPicture for anything else."""
    from PIL import Image, UnidentifiedImageError

    if len(data) > MAX_BYTES or _format_of(data) != "PNG":
        raise BadPicture("A mask is a PNG picture.")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.mode != "L" or picture.width * picture.height > MAX_PIXELS:
                raise BadPicture("A mask is an 8-bit grey PNG, without colours or transparency.")
            return np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadPicture):
            raise
        raise BadPicture(f"The picture can't be decoded: {error}.") from error


def checked(pixels: np.ndarray) -> np.ndarray:
    """The array itself, contiguous, or BadPicture unless it is uint8 (H, W, 3 or 4) within the caps."""
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise BadPicture("A picture must be bytes of a PNG, or an array (height, width, 3) of uint8.")
    height, width, channels = pixels.shape
    if channels not in (3, 4) or not 0 < height * width <= MAX_PIXELS:
        raise BadPicture(f"A picture of {width} x {height} pixels and {channels} channels can't be kept.")
    return np.ascontiguousarray(pixels)


def content_hash(data: bytes) -> str:
    """`blake3:<64 hex digits>`, the form in which ComfyUI names its assets."""
    from blake3 import blake3

    return f"blake3:{blake3(data).hexdigest()}"


def pixel_hash(pixels: np.ndarray) -> str:
    """Hash of size and pixels alone, so that it survives a rewriting of the file's metadata."""
    return content_hash(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes())


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG without any metadata."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


class Media:
    """A folder of pictures named by their content; writing the same picture twice keeps one file."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)

    def path(self, file_hash: str) -> Path:
        """Where the picture lies; raises BadPicture for anything but a hash of ours, so that no path can be built."""
        digest = file_hash.removeprefix("blake3:")
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise BadPicture(f"{file_hash!r} is no hash of a picture.")
        return self.root / digest[:2] / f"{digest}.png"

    def put(self, pixels: np.ndarray) -> str:
        """Keeps the picture and returns its file hash once the file is on disk."""
        data = encode_png(checked(pixels))
        file_hash = content_hash(data)
        if not (target := self.path(file_hash)).exists():
            write_durably(target, data)
        return file_hash

    def pixels(self, file_hash: str) -> np.ndarray:
        """Pixels (H, W, 3 or 4), uint8. Raises FileNotFoundError if somebody removed the file."""
        return decode(self.path(file_hash).read_bytes())

    def thumbnail(self, file_hash: str) -> bytes:
        """A JPEG of at most THUMBNAIL pixels a side, made when it is first asked for."""
        source = self.path(file_hash)
        target = self.root / "thumbnails" / source.parent.name / f"{source.stem}.jpg"
        if target.exists():
            return target.read_bytes()
        data = _encode_thumbnail(self.pixels(file_hash))
        write_durably(target, data)
        return data

    def remove(self, file_hash: str) -> int:
        """Deletes the picture and its thumbnail and returns their bytes; a file that is gone already is no error."""
        source = self.path(file_hash)
        return removed(source) + removed(self.root / "thumbnails" / source.parent.name / f"{source.stem}.jpg")


def removed(path: Path) -> int:
    """Deletes a file and returns its bytes, 0 if it is not there."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def _encode_thumbnail(pixels: np.ndarray) -> bytes:
    from PIL import Image

    picture = Image.fromarray(pixels).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def write_durably(target: Path, data: bytes) -> None:
    """Writes a whole file or none: temporary file, fsync, rename, fsync of the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(file.name, target)
        finally:
            Path(file.name).unlink(missing_ok=True)  # still there only if one of the above failed
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows can't open a folder, and renames there are durable by the journal
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
