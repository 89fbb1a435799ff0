"""What travels between the store and a file: pictures with how they were made, and what was said of them.

The records are those of `records` and `marks`; in a bundle their image ids are the keys of its pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, TypeVar

from ..documents import redacted
from ..marks import Ranking, Region, Tag, WordMark
from ..records import Comment, Comparison, Generation, InvalidRecord, Rating

Record = Rating | Comparison | Ranking | Region | WordMark | Tag | Comment
R = TypeVar("R")

KINDS: dict[type, str] = {
    Rating: "ratings",
    Comparison: "comparisons",
    Ranking: "rankings",
    Region: "marked regions",
    WordMark: "marked words",
    Tag: "tags",
    Comment: "comments",
}
MADE_BY = {
    "negative": "negative prompts",
    "seed": "seeds",
    "steps": "numbers of steps",
    "cfg": "CFG scales",
    "sampler": "samplers",
    "scheduler": "schedulers",
    "denoise": "denoising strengths",
    "checkpoint": "names of checkpoints",
    "loras": "LoRAs",
}
"""Fields of a generation, as a report names them."""

REFUSED = "that broke a rule"


class BadData(ValueError):
    """A file that can't be taken in, or that a format can't be made of; the message says what and what to do."""


@dataclass
class Report:
    """What a file holds of a bundle, and what had to stay behind: sentence -> how many."""

    held: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    first_refused: str | None = None

    def refuse(self, why: str) -> None:
        """Notes a judgement or a picture that breaks our rules."""
        self.first_refused = self.first_refused or why
        self.left[REFUSED] += 1

    def leave(self, what: str, count: int = 1) -> None:
        """Notes that `count` things stayed behind, if any."""
        if count:
            self.left[what] += count

    def text(self) -> str:
        """One line of what is there, one for each thing that is not."""
        held = ", ".join(f"{count} {what}" for what, count in self.held.items() if count) or "nothing"
        lines = [f"Held: {held}.", *(f"Left out: {count} {what}." for what, count in self.left.items())]
        return "\n".join([*lines, *([f"The first: {self.first_refused}"] if self.first_refused else [])])


@dataclass(frozen=True)
class Picture:
    """A picture of a bundle. `read` gives the bytes of its file when they are needed, None if only its name is known.

    `width` and `height` in pixels where they are known without reading it.
    """

    key: str
    read: Callable[[], bytes] | None
    generation: Generation = field(default_factory=Generation)
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class Said:
    """One judgement, and when it was given, where that is known."""

    record: Any
    at: datetime | None = None


@dataclass
class Bundle:
    """Pictures by key, and what was said of them in order. `report` says what the file had that is not in here."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    def picture(self, picture: Picture) -> str:
        """Adds the picture unless one of its key is there; returns the key."""
        self.pictures.setdefault(picture.key, picture)
        return picture.key

    def say(self, make: Callable[[], Record], where: str, at: datetime | None = None) -> None:
        """Adds what `make` returns; what no store would take is left out, and the report says where the first was."""
        try:
            self.said.append(Said(make(), at))
        except InvalidRecord as error:
            self.report.refuse(f"{where}: {error}")

    def of(self, kind: type[R]) -> list[tuple[R, datetime | None]]:
        """The records of one kind with their times."""
        return [(one.record, one.at) for one in self.said if isinstance(one.record, kind)]

    def raters(self) -> list[str]:
        """Everybody who said something, in order of appearance."""
        return list(dict.fromkeys(one.record.rater for one in self.said))

    def without_names(self) -> Bundle:
        """The same with raters numbered instead of named."""
        number = {name: f"rater {n}" for n, name in enumerate(self.raters(), 1)}
        said = [Said(replace(one.record, rater=number[one.record.rater]), one.at) for one in self.said]
        return Bundle(self.pictures, said, self.report)

    def without_secrets(self) -> Bundle:
        """The same with keys and passwords taken out of every text, before it leaves the machine."""
        pictures = {key: replace(p, generation=_clean(p.generation)) for key, p in self.pictures.items()}
        return Bundle(pictures, [Said(_clean(one.record), one.at) for one in self.said], self.report)


def images_of(record: Record) -> tuple[str, ...]:
    """The keys of the pictures that a record speaks of."""
    if isinstance(record, Comparison):
        return record.left, record.right
    return record.image_ids if isinstance(record, Ranking) else (record.image_id,)


def renamed(record: Record, names: dict[str, str]) -> Record:
    """The record with other image ids. Raises KeyError for a picture without a new name."""
    if isinstance(record, Comparison):
        return replace(record, left=names[record.left], right=names[record.right])
    if isinstance(record, Ranking):
        return replace(record, image_ids=tuple(names[one] for one in record.image_ids))
    return replace(record, image_id=names[record.image_id])


def _clean(record: Any) -> Any:
    texts = {f.name: value for f in fields(record) if isinstance(value := getattr(record, f.name), str)}
    kept = {"image_id", "left", "right", "winner", "shape"}
    return replace(record, **{name: redacted(text) for name, text in texts.items() if name not in kept})


def leave_kinds(report: Report, bundle: Bundle, kinds: Iterable[type], why: str) -> None:
    """Notes the records of these kinds as left out."""
    for kind in kinds:
        report.leave(f"{KINDS[kind]}: {why}", len(bundle.of(kind)))


def leave_settings(report: Report, pictures: Iterable[Picture], held: Iterable[str], why: str) -> None:
    """Notes which of the settings that made the pictures are not among `held`."""
    kept, missing = set(held), Counter[str]()
    for picture in pictures:
        missing.update(f for f in MADE_BY if f not in kept and getattr(picture.generation, f) is not None)
    for name, count in missing.items():
        report.leave(f"{MADE_BY[name]}: {why}", count)
