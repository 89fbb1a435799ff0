"""An open store: the database, the folders of pictures, and the outbox before a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from . import (
    derived,
    latents,
    media,
    writes,
)
from .database import Database
from .engines import folder_of, is_file
from .outbox import Outbox
from .records import (
    RequestKey,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")


class OpenStore:
    """What every part of the store works with."""

    def __init__(self, url: str, media_dir: Path) -> None:
        self._database = database = Database(url)
        self._media = media.Media(media_dir)
        self._latents = latents.Latents(Path(media_dir) / "latents")
        if self.read_only is None and not self._database.read(derived.is_current):
            self.rebuild()
        outbox = Path(media_dir).parent / "outbox"
        self._outbox = None if is_file(database.url) else Outbox(outbox / folder_of(database.url), database)

    @property
    def waiting(self) -> int:
        """How many judgements wait on this machine's disk for a database server to come back."""
        return 0 if self._outbox is None else self._outbox.waiting

    @property
    def read_only(self) -> str | None:
        """Why nothing can be written, or None."""
        return self._database.read_only

    def close(self) -> None:
        """Finishes what was asked to be written and lets go of the files."""
        if self._outbox is not None:
            self._outbox.close()
        self._database.close()

    def ask(self, question: Callable[[Connection], T]) -> T:
        """The answer to a question of a module of its own (wishes, refinements, suggestions), on one snapshot."""
        return self._database.read(question)

    def note(self, change: Callable[[Connection], T]) -> T:
        """What such a module writes, wholly or not at all; returns once it is on disk."""
        return self._database.write(change)

    def rebuild(self) -> None:
        """Counts anew what lists and counts are quick by; for a database that was written to by other means."""
        self._database.write(derived.rebuild)

    def _write(self, insert: Callable[[Connection], str], key: RequestKey | None = None) -> str:
        return self._database.write(lambda c: writes.once(c, key, insert))
