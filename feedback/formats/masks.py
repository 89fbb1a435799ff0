"""Masks as formats write them: grey PNG as base64, Label Studio's packed runs, COCO's runs. Masks are (H, W) uint8."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np

from ..media import MAX_PIXELS, BadPicture, decode
from .bundle import BadData

WORD = 8  # bits of a value
SIZES = (3, 4, 8, 16)  # bits of a run's length, to choose from


def to_png(mask: np.ndarray) -> bytes:
    """(H, W) uint8 -> an 8-bit grey PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask, "L").save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes, where: str) -> np.ndarray:
    """A picture -> (H, W) uint8: its grey value. Raises BadData."""
    try:
        return np.ascontiguousarray(decode(data)[..., 0])
    except BadPicture as error:
        raise BadData(f"{where}: the mask is no picture: {error}") from error


def to_text(png: bytes) -> str:
    """PNG -> base64."""
    return base64.b64encode(png).decode("ascii")


def from_text(text: str, where: str) -> bytes:
    """base64 -> PNG. Raises BadData."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadData(f"{where}: the mask is no base64: {error}.") from error


def _checked_size(width: int, height: int, where: str) -> int:
    if not (0 < width and 0 < height and width * height <= MAX_PIXELS):
        raise BadData(f"{where}: a mask of {width} x {height} pixels can't be taken in; at most {MAX_PIXELS} pixels.")
    return width * height


# --- Label Studio ----------------------------------------------------------------------------------------------------
# A stream of bits, most significant first: 32 bits the number of values, 5 bits their width - 1, four times 4 bits the
# widths - 1 that a length can have; then blocks: 1 bit whether it is a run, 2 bits which width, the length - 1, and one
# value (a run) or `length` values. The values are RGBA, row by row.


def pack_brush(mask: np.ndarray) -> list[int]:
    """(H, W) -> Label Studio's `rle`, a list of bytes; all four channels carry the mask."""
    values = np.repeat(np.ascontiguousarray(mask).reshape(-1), 4)
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, int)
    ends = np.append(starts[1:], len(values))
    bits = [f"{len(values):032b}{WORD - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        value = f"{int(values[start]):08b}"
        for length in _parts(end - start):
            width = next(i for i, size in enumerate(SIZES) if length - 1 < 1 << size)
            bits.append(f"1{width:02b}{length - 1:0{SIZES[width]}b}{value}")
    joined = "".join(bits)
    joined += "0" * (-len(joined) % 8)
    return list(int(joined, 2).to_bytes(len(joined) // 8, "big"))


def _parts(length: int) -> list[int]:
    longest = 1 << SIZES[-1]
    return [longest] * (length // longest) + ([length % longest] if length % longest else [])


def unpack_brush(packed: list[int], width: int, height: int, where: str) -> np.ndarray:
    """Label Studio's `rle` -> (H, W): the alpha channel. Raises BadData unless it fills exactly that picture."""
    pixels = _checked_size(width, height, where)
    if len(packed) > 8 * pixels + 64 or not all(isinstance(b, int) and 0 <= b < 256 for b in packed):
        raise BadData(f"{where}: rle must be a list of bytes, not more than a picture of this size can have.")
    stream = _Bits(bytes(packed), where)
    count, word, widths = stream.take(32), stream.take(5) + 1, [stream.take(4) + 1 for _ in range(4)]
    if count != 4 * pixels or word != WORD:
        raise BadData(f"{where}: rle claims {count} values, but a picture of {width} x {height} has {4 * pixels}.")
    values, done = np.zeros(count, np.uint8), 0
    while done < count:
        run, length = stream.take(1), stream.take(widths[stream.take(2)]) + 1
        if done + length > count:
            raise BadData(f"{where}: rle holds more values than it claims.")
        values[done : done + length] = stream.take(word) if run else stream.bytes(length)
        done += length
    return values.reshape(height, width, 4)[..., 3].copy()


class _Bits:
    """A cursor over bits; past the end is an error."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._at = data, where, 0

    def take(self, count: int) -> int:
        first, last = self._at // 8, (self._at + count + 7) // 8
        if last > len(self._data):
            raise BadData(f"{self._where}: rle ends in the middle.")
        window = int.from_bytes(self._data[first:last], "big")
        self._at += count
        return window >> (8 * last - self._at) & (1 << count) - 1

    def bytes(self, count: int) -> np.ndarray:
        return np.frombuffer(self.take(8 * count).to_bytes(count, "big"), np.uint8)


# --- COCO ------------------------------------------------------------------------------------------------------------
# Lengths of runs of 0 and 1 in turn, column by column, the first of 0; as a list, or as text with 5 bits a character,
# where from the fourth on a length is given as the difference to the one before the last.


def coco_runs(mask: np.ndarray) -> list[int]:
    """(H, W) -> COCO's uncompressed counts of mask >= 128."""
    flat = np.concatenate([[False], (mask >= 128).reshape(-1, order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges, [flat.size - 1]])).tolist()


def from_coco_runs(counts: list[int] | str, width: int, height: int, where: str) -> np.ndarray:
    """COCO's counts, as list or as text -> (H, W) of 0 and 255. Raises BadData unless they fill that picture."""
    pixels = _checked_size(width, height, where)
    runs = _spelled_out(counts, where) if isinstance(counts, str) else counts
    if len(runs) > pixels + 2 or not all(isinstance(run, int) and 0 <= run <= pixels for run in runs):
        raise BadData(f"{where}: counts must be lengths of runs within a picture of {width} x {height}.")
    if sum(runs) != pixels:
        raise BadData(f"{where}: counts claim {sum(runs)} pixels, but the picture has {pixels}.")
    flat = np.repeat(np.arange(len(runs)) % 2 * 255, runs).astype(np.uint8)
    return np.ascontiguousarray(flat.reshape(height, width, order="F"))


def _spelled_out(text: str, where: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 40:
            raise BadData(f"{where}: counts hold {character!r}, which no run is spelled with.")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise BadData(f"{where}: counts end in the middle.")
    return runs
