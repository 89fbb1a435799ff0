"""ZIP files as we write them: pictures under images/, JSON beside them, and what the readers of such files share."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..records import Generation
from .bundle import BadData, Bundle, Picture
from .guards import Archive, is_url, key_of, parsed_json

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bundle makes the same bytes


class Sink:
    """A ZIP that is written; use as a context. Pictures are packed already, so members are stored as they are."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def put(self, name: str, data: bytes | str) -> None:
        """Adds a member."""
        self._zip.writestr(zipfile.ZipInfo(name, EPOCH), data)

    def json(self, name: str, document: Any) -> None:
        """Adds a JSON member."""
        self.put(name, json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1))

    def picture(self, picture: Picture) -> str:
        """Adds a picture; returns the name of its member."""
        if picture.read is None:
            raise BadData(f"The picture {picture.key!r} has no file to export.")
        data = picture.read()
        name = f"images/{file_name(picture.key)}{ending(data)}"
        self.put(name, data)
        return name


def file_name(key: str) -> str:
    """The key as a name that no system takes for a path; ours are UUIDs and stay what they are."""
    stem = re.sub(r"\.(png|jpe?g|webp)$", "", key.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    return re.sub(r"[^\w-]", "_", stem, flags=re.ASCII)[:100] or "picture"


def ending(data: bytes) -> str:
    """The ending that fits the first bytes of a picture."""
    return ".jpg" if data[:3] == b"\xff\xd8\xff" else ".webp" if data[8:12] == b"WEBP" else ".png"


class Documents:
    """The JSON documents of a file, and the pictures that they name: of a ZIP, or a JSON file that has none."""

    def __init__(self, path: Path, archive: Archive | None) -> None:
        self._archive = archive
        self._path = path
        self._parsed: dict[str, Any] = {}

    @property
    def bare(self) -> bool:
        """Whether there are no pictures beside the document."""
        return self._archive is None

    def named(self) -> list[str]:
        """The names of the JSON documents, "" for a JSON file itself."""
        if self._archive is None:
            return [""]
        return [name for name in self._archive.names if name.lower().endswith(".json")]

    def get(self, name: str) -> Any:
        """The document of that name."""
        if name not in self._parsed:
            plain = self._archive is None
            self._parsed[name] = (
                parsed_json(self._path.read_bytes(), "The file") if plain else self._archive.document(name)  # type: ignore[union-attr]
            )
        return self._parsed[name]

    def lists(self, *keys: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(name, rows) of the documents that are lists of objects of which the first has all of these keys."""
        for name in self.named():
            found = self.get(name)
            if isinstance(found, list) and found and isinstance(found[0], dict) and set(keys) <= set(found[0]):
                if not all(isinstance(row, dict) for row in found):
                    raise BadData(f"{name or 'The file'} must be a list of objects.")
                yield name, found

    def picture(self, bundle: Bundle, named: str, made: Generation, beside: str = "") -> str:
        """Adds the picture that a document means by `named`; returns its key. A URL is never fetched.

        A picture without a file stays in the bundle by its name alone: the store may have it already.
        """
        if self._archive is None or is_url(named):
            return bundle.picture(Picture(key_of(named), None, made))
        member = self._archive.find(named, beside)
        if member is None:
            return bundle.picture(Picture(key_of(named), None, made))
        archive = self._archive
        return bundle.picture(Picture(key_of(member), lambda: archive.read(member), made))

    def member(self, named: str, beside: str = "") -> bytes | None:
        """The bytes of another file that a document names, such as a mask; None if it is not in the ZIP."""
        if self._archive is None or is_url(named) or (member := self._archive.find(named, beside)) is None:
            return None
        return self._archive.read(member)
