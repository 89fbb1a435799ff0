"""Files of strangers: what they are by their first bytes, and ZIP and JSON that is read without trusting it.

Nothing is unpacked to disk, nothing is fetched, nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import re
import stat
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from ..media import MAX_BYTES
from ..records import InvalidRecord, checked_text
from .bundle import BadData

Kind = Literal["parquet", "zip", "json"]

MAX_JSON = 256 * 2**20  # bytes of one JSON file
MAX_MEMBERS = 500_000
MAX_UNPACKED = 64 * 2**30  # bytes of all members
MAX_RATIO = 200  # unpacked to packed, of a member larger than FREE_BYTES; pictures hardly get smaller in a ZIP
FREE_BYTES = 2**20
URL = re.compile(r"(?i)^\s*([a-z][a-z0-9+.-]*:|//)")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
PICKLE = "it is a pickle (.pt, .ckpt, .pkl), and opening one runs the program in it. Convert it to Parquet, ZIP or JSON"


def kind_of(path: Path) -> Kind:
    """What the file is, by its first bytes. Raises BadData for a pickle and for what no format here is made of."""
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, path.stat().st_size - 1))
        last = file.read(1)
    numbered = head[:1] == b"\x80" and head[1:2] <= b"\x05"
    if numbered or head[:1] in (b"(", b"c", b"}", b"]", b"l", b")") and last == b".":
        raise BadData(f"The file is refused: {PICKLE}.")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
        return "json"
    raise BadData("The file is no Parquet, ZIP or JSON file. Data sets come in these; pictures alone go into a ZIP.")


def is_url(name: str) -> bool:
    """Whether the text names a place outside of the file: with a scheme such as https: or data:, or //host."""
    return URL.match(name) is not None


def key_of(name: str) -> str:
    """What a picture file is called in a bundle: the id that we exported it under, else its whole name."""
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return stem if UUID.fullmatch(stem) else name


def parsed_json(data: bytes, name: str) -> Any:
    """The JSON value. Raises BadData for broken, too large or too deep JSON, doubled keys, NaN, and huge integers."""
    if len(data) > MAX_JSON:
        raise BadData(f"{name} has {len(data)} bytes; at most {MAX_JSON} are read. Split the data set.")
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{name} is no valid JSON: {str(error)[:200]}.") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


class Archive:
    """A ZIP of which every name and size was checked before anything is read. Use as a context."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise BadData(f"The ZIP can't be opened: {error}.") from error
        with ExitStack() as refused:
            refused.callback(self._zip.close)
            self._members = _checked_members(self._zip.infolist(), path.stat().st_size)
            refused.pop_all()
        self.names = list(self._members)
        self._by_base: dict[str, list[str]] = {}
        for name in self.names:
            self._by_base.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; pictures can't be read after it."""
        self._zip.close()

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """The bytes of a member. Raises BadData if they are more than `limit`, more than it said, or damaged."""
        member = self._members[name]
        if member.file_size > limit:
            raise BadData(f"{name[:100]!r} in the ZIP has {member.file_size} bytes; at most {limit} are read.")
        try:
            with self._zip.open(member) as file:
                data = file.read(limit + 1)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, zlib.error) as error:
            raise BadData(f"{name[:100]!r} in the ZIP is damaged: {error}.") from error
        if len(data) > limit:
            raise BadData(f"{name[:100]!r} in the ZIP has more than {limit} bytes.")
        return data

    def document(self, name: str) -> Any:
        """The JSON value of a member."""
        return parsed_json(self.read(name, MAX_JSON), f"{name[:100]!r} in the ZIP")

    def find(self, named: str, beside: str = "") -> str | None:
        """The member that a data set means by `named`: in the folder of `beside`, from the top, or the only one so
        called; None if there is none."""
        name = named.replace("\\", "/").removeprefix("./").lstrip("/")
        folder = beside.rsplit("/", 1)[0] + "/" if "/" in beside else ""
        for candidate in (folder + name, name):
            if candidate in self._members:
                return candidate
        same = self._by_base.get(name.rsplit("/", 1)[-1], [])
        return same[0] if len(same) == 1 else None


def _checked_members(members: Sequence[zipfile.ZipInfo], packed: int) -> dict[str, zipfile.ZipInfo]:
    if len(members) > MAX_MEMBERS:
        raise BadData(f"The ZIP has {len(members)} members; at most {MAX_MEMBERS} are read. Split the data set.")
    if sum(m.compress_size for m in members) > packed:
        raise BadData("The ZIP's members overlap, which only a file made to do harm has.")
    if sum(m.file_size for m in members) > MAX_UNPACKED:
        raise BadData(f"The ZIP says that it unpacks to more than {MAX_UNPACKED} bytes. Split the data set.")
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        _check_member(member)
        if member.filename in found:
            raise BadData(f"The ZIP has two members called {member.filename[:100]!r}.")
        if not member.is_dir():
            found[member.filename] = member
    return found


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    shown = f"The ZIP's member {name[:100]!r}"
    parts = name.rstrip("/").split("/")
    if not name or len(name) > 1024 or "\\" in member.orig_filename or "\0" in member.orig_filename:
        raise BadData(f"{shown} has a name that is refused: names are at most 1024 characters, with / between folders.")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or any(part in ("", ".", "..") for part in parts):
        raise BadData(f"{shown} leads out of the ZIP. Nothing of this file is taken in.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise BadData(f"{shown} is a symbolic link. Put the file itself into the ZIP.")
    if member.flag_bits & 1:
        raise BadData(f"{shown} is encrypted. Make a ZIP without a password.")
    if parts[-1].lower() in ("data.pkl",) or parts[-1].lower().endswith((".pkl", ".pickle", ".ckpt", ".pt", ".pth")):
        raise BadData(f"{shown} is refused: {PICKLE}.")
    if member.file_size > FREE_BYTES and member.file_size > MAX_RATIO * max(1, member.compress_size):
        raise BadData(f"{shown} unpacks to {member.file_size // max(1, member.compress_size)} times its size: a bomb.")


# Values of a row, with a sentence for whoever made it wrong


def text(row: dict[str, Any], name: str, where: str, default: str | None = None) -> str | None:
    """The text of that name, `default` where it is missing or null."""
    if (value := row.get(name)) is None:
        return default
    if not isinstance(value, str):
        raise BadData(f"{where}: {name} must be text, not {type(value).__name__}.")
    try:
        return checked_text(value, name)
    except InvalidRecord as error:
        raise BadData(f"{where}: {error}") from error


def number(row: dict[str, Any], name: str, where: str, default: float | None = None) -> float | None:
    """The finite number of that name, `default` where it is missing or null."""
    if (value := row.get(name)) is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise BadData(f"{where}: {name} must be a finite number, not {str(value)[:40]!r}.")
    return float(value)


def rows_of(value: Any, where: str) -> list[dict[str, Any]]:
    """The list of objects that it has to be; missing or null is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadData(f"{where} must be a list of objects.")
    return value


def list_of(row: dict[str, Any], name: str, kinds: type | tuple[type, ...], where: str) -> list[Any]:
    """The list of that name, all items of these types; numbers among them are finite."""
    value = row.get(name)
    if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, kinds) for v in value):
        raise BadData(f"{where}: {name} must be a list of the right kind of values.")
    if any(isinstance(v, float) and not math.isfinite(v) for v in value):
        raise BadData(f"{where}: {name} holds a number that is not finite.")
    return value
