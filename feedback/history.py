"""Pictures that were made before anybody captured them: PNG files of a folder, and the graphs that they carry.

The files may come from anywhere, so a chunk is looked at only when its size says that it can be what it claims to be.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from . import provenance
from .media import MAX_BYTES, MAX_PIXELS, BadPicture
from .records import Generation, Provenance

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
MAX_TEXT_CHUNK = 8 * 2**20  # bytes, of a graph too when it is unpacked; large workflows take 1 or 2 MB
MAX_CHUNKS = 100_000
MAX_KEYWORD = 79
NO_LINK = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
MAX_FILES = 1_000_000
MAX_SAVERS = 64  # nodes that save pictures in one graph


@dataclass(frozen=True)
class PastPicture:
    """A file's bytes and how its picture was made, as far as the file says so."""

    data: bytes
    generation: Generation


def files(folder: Path) -> list[Path]:
    """The PNG files in and below the folder, oldest first. Links are listed, to be refused by `read`, not followed."""
    found: list[tuple[float, Path]] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if name.lower().endswith(".png")):
            try:
                found.append((path.lstat().st_mtime, path))
            except FileNotFoundError:
                continue  # tidied away while we looked
        if len(found) > MAX_FILES:
            break
    return [path for _, path in sorted(found)[:MAX_FILES]]


def read(path: Path) -> PastPicture:
    """The picture of a file with its provenance. Raises BadPicture for links, and for what is no sound PNG."""
    data = _bytes_of(path)
    texts = dict(_texts(data))
    prompt, workflow = _graph(texts.get("prompt")), _graph(texts.get("workflow"))
    if prompt is None:
        return PastPicture(data, Generation(workflow=workflow))
    nodes = savers(prompt, path.name)
    made = _agreed([provenance.read(prompt, workflow, node) for node in nodes])
    node = nodes[0] if len(nodes) == 1 else None
    return PastPicture(data, Generation.of(made, node_id=node, api_prompt=prompt, workflow=workflow))


def _bytes_of(path: Path) -> bytes:
    """The whole file. A link could lead out of the folder, a pipe or a device would never end."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BadPicture("It is a link or no plain file, so it is not followed.")
        with os.fdopen(os.open(path, NO_LINK), "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise BadPicture(f"The file has {size} bytes; at most {MAX_BYTES} are read.")
            return file.read(MAX_BYTES)
    except OSError as error:
        raise BadPicture(f"The file can't be read: {error.strerror}.") from error


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of each chunk up to the end of the picture. Raises BadPicture where lengths don't add up."""
    if not data.startswith(SIGNATURE):
        raise BadPicture("The file is no PNG picture, whatever its name says.")
    view, at = memoryview(data), len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            raise BadPicture("The file is cut off.")
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise BadPicture("The file is cut off, or a chunk of it claims to be larger than the file.")
        yield kind, view[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        at += 12 + length
    raise BadPicture(f"The file has more than {MAX_CHUNKS} chunks.")


def _texts(data: bytes) -> Iterator[tuple[str, str]]:
    """The texts that a picture carries, by keyword. Raises BadPicture for sizes beyond what ComfyUI writes."""
    for kind, content in _chunks(data):
        if kind == b"IHDR":
            _check_size(content)
        elif kind in TEXTS:
            if len(content) > MAX_TEXT_CHUNK:
                raise BadPicture(f"A text in the file has {len(content)} bytes; at most {MAX_TEXT_CHUNK} are read.")
            keyword, _, rest = bytes(content).partition(b"\0")
            if 0 < len(keyword) <= MAX_KEYWORD:
                yield keyword.decode("latin-1"), _text(kind, rest)


def _check_size(header: memoryview) -> None:
    if len(header) != 13:
        raise BadPicture("The header of the file is malformed.")
    width, height = struct.unpack_from(">II", header)
    if not 0 < width * height <= MAX_PIXELS:
        raise BadPicture(f"The picture has {width} x {height} pixels; at most {MAX_PIXELS} are read.")


def _text(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _unpacked(rest[1:]).decode("latin-1")
    packed, rest = rest[:1] == b"\1", rest[2:]
    text = rest.split(b"\0", 2)[-1]  # after the language and the keyword in that language
    return (_unpacked(text) if packed else text).decode("utf-8", "replace")


def _unpacked(data: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(data, MAX_TEXT_CHUNK)
    except zlib.error as error:
        raise BadPicture(f"A packed text in the file is broken: {error}.") from error
    if unpacking.unconsumed_tail:
        raise BadPicture(f"A packed text in the file is larger than {MAX_TEXT_CHUNK} bytes.")
    return text


def _graph(text: str | None) -> dict[str, Any] | None:
    """The JSON object that a text holds; None where it holds something else, which other programs put there."""
    if text is None:
        return None
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except RecursionError as error:
        raise BadPicture("The graph in the file is nested too deeply.") from error
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def savers(prompt: dict[str, Any], name: str) -> list[str]:
    """The nodes that can have saved a file of this name: by their filename_prefix, else all that save pictures."""
    inputs = {id_: node.get("inputs") for id_, node in prompt.items() if isinstance(node, dict)}
    saving = {
        id_: values["filename_prefix"]
        for id_, values in inputs.items()
        if isinstance(values, dict) and isinstance(values.get("filename_prefix"), str)
    }
    fitting = [id_ for id_, prefix in saving.items() if name.startswith(_fixed_part(prefix))]
    found = fitting or list(saving)
    return found if len(found) <= MAX_SAVERS else []


def _fixed_part(prefix: str) -> str:
    """What a file's name surely begins with: the last folder's part, up to the first %placeholder%."""
    return prefix.replace("\\", "/").rpartition("/")[2].partition("%")[0]


def _agreed(found: Iterable[Provenance]) -> Provenance:
    """What all say; None where they differ."""
    every = list(found)
    if not every:
        return Provenance()
    first = every[0]
    names = [field.name for field in fields(Provenance)]
    return Provenance(
        **{
            name: getattr(first, name)
            for name in names
            if all(getattr(one, name) == getattr(first, name) for one in every)
        }
    )
