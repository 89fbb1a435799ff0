"""Edits that come back again and again, and what standing adjustment they suggest. Nothing is applied here."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import func, select

from . import tables
from .derived import COUNTS
from .refinement_tables import choice, refinement
from .wish_words import wishes

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select, Table

Kind = Literal["more", "less", "penalty", "train"]
"""A standing wish, one in the negative prompt, a reward for the label, or a training on what was accepted."""

MAX_READ = 20_000  # comments and marks, the latest
SHOWN = 20  # rows of a table, and pictures named as evidence
GOOD = {"good"}  # labels that ask for no change
PENALTIES = {"watermark", "text", "logo", "signature"}  # labels for which the watermark penalty stands
TRAINABLE = 20  # accepted rounds from which a LoRA is worth a try


@dataclass(frozen=True)
class Evidence:
    """In how many pictures something was asked for, by how many people, and some of the pictures, the latest first."""

    pictures: int
    raters: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Recurring:
    """What comes back most often. words: (wanted, phrase); places: where marks lie, in ninths of the picture."""

    words: dict[tuple[bool, str], Evidence]
    labels: dict[str, Evidence]
    places: dict[str, int]
    interactions: dict[str, int]
    rounds: int
    accepted: int


@dataclass(frozen=True)
class Suggestion:
    """A standing adjustment that could be made, `name`d the same whenever it is suggested again."""

    kind: Kind
    what: str
    evidence: Evidence

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class _Heard:
    """For whom and of which pictures something was said."""

    pictures: dict[str, None] = field(default_factory=dict)
    raters: set[str] = field(default_factory=set)

    def evidence(self) -> Evidence:
        return Evidence(len(self.pictures), len(self.raters), tuple(self.pictures)[:SHOWN])


def recurring(connection: Connection, collection: str | None = None) -> Recurring:
    """Counts over the latest comments, marks, rounds and interactions of a collection, or of all."""
    regions = connection.execute(_latest(tables.region, collection)).all()
    comments = connection.execute(_latest(tables.comment, collection)).all()
    said = [(row.image_id, row.rater, row.text) for row in comments]
    said += [(row.image_id, row.rater, row.comment) for row in regions if row.comment]
    said += _accepted(connection, collection)
    bad = [row for row in regions if row.label.lower() not in GOOD]
    rounds, accepted = _rounds(connection, collection)
    return Recurring(
        words=_words(said),
        labels=_counted((row.label.lower(), row.image_id, row.rater) for row in bad),
        places=dict(Counter(_place(row.geometry) for row in bad if row.mask is None).most_common()),
        interactions=_interactions(connection, collection),
        rounds=rounds,
        accepted=accepted,
    )


def suggestions(found: Recurring, minimum: int = 3) -> list[Suggestion]:
    """What is worth a standing adjustment: asked for in at least `minimum` pictures; the most often asked first."""
    made = [
        Suggestion("more" if wanted else "less", phrase, evidence)
        for (wanted, phrase), evidence in found.words.items()
        if evidence.pictures >= minimum
    ]
    for label, evidence in found.labels.items():
        if label in PENALTIES and evidence.pictures >= minimum:
            made.append(Suggestion("penalty", label, evidence))
    if found.accepted >= max(TRAINABLE, minimum):
        made.append(Suggestion("train", "a LoRA on what was accepted", Evidence(found.accepted, 0, ())))
    against = {(one.kind, one.what) for one in made}
    # a wish and its opposite, from different people or times, say nothing together
    opposite = {"more": "less", "less": "more"}
    kept = [one for one in made if (opposite.get(one.kind), one.what) not in against]
    return sorted(kept, key=lambda one: -one.evidence.pictures)


def _latest(table: Table, collection: str | None) -> Select:
    judgement, image, rater = tables.judgement, tables.image, tables.rater
    rows = (
        select(table, rater.c.name.label("rater"))
        .join(judgement, judgement.c.id == table.c.id)
        .join(rater, rater.c.id == judgement.c.rater_id)
        .join(image, image.c.id == table.c.image_id)
        .where(COUNTS)
        .order_by(judgement.c.revision.desc())
        .limit(MAX_READ)
    )
    return rows if collection is None else rows.where(image.c.collection == collection)


def _accepted(connection: Connection, collection: str | None) -> list[tuple[str, str, str]]:
    """(parent, rater, comment) of rounds with an accepted candidate; what was asked for there was meant."""
    image, rater = tables.image, tables.rater
    rows = (
        select(refinement.c.parent_id, rater.c.name, refinement.c.comment)
        .join(choice, choice.c.refinement_id == refinement.c.id)
        .join(rater, rater.c.id == choice.c.rater_id)
        .join(image, image.c.id == refinement.c.parent_id)
        .where(choice.c.image_id.is_not(None), choice.c.how != "best", refinement.c.comment != "")
        .order_by(refinement.c.revision.desc())
        .limit(MAX_READ)
    )
    rows = rows if collection is None else rows.where(image.c.collection == collection)
    return [(parent, name, text) for parent, name, text in connection.execute(rows)]


def _rounds(connection: Connection, collection: str | None) -> tuple[int, int]:
    """(how many rounds there are, how many of them were decided for a candidate by a person)."""
    image = tables.image
    every = select(func.count(refinement.c.id)).join(image, image.c.id == refinement.c.parent_id)
    chosen = select(choice.c.refinement_id).where(choice.c.refinement_id == refinement.c.id, choice.c.how != "best")
    some = every.where(chosen.where(choice.c.image_id.is_not(None)).exists())
    if collection is not None:
        every, some = (rows.where(image.c.collection == collection) for rows in (every, some))
    return connection.execute(every).scalar_one(), connection.execute(some).scalar_one()


def _words(said: Iterable[tuple[str, str, str]]) -> dict[tuple[bool, str], Evidence]:
    heard: dict[tuple[bool, str], _Heard] = defaultdict(_Heard)
    for image_id, rater, text in said:
        for wish in wishes(text):
            one = heard[wish.wanted, wish.text.lower()]
            one.pictures.setdefault(image_id)
            one.raters.add(rater)
    return _most(heard)


def _counted(said: Iterable[tuple[str, str, str]]) -> dict[str, Evidence]:
    heard: dict[str, _Heard] = defaultdict(_Heard)
    for what, image_id, rater in said:
        heard[what].pictures.setdefault(image_id)
        heard[what].raters.add(rater)
    return _most(heard)


def _most(heard: dict[Any, _Heard]) -> dict[Any, Evidence]:
    order = sorted(heard.items(), key=lambda item: -len(item[1].pictures))
    return {what: one.evidence() for what, one in order[:SHOWN]}


def _place(geometry: str) -> str:
    """The ninth of the picture in which the middle of a mark lies."""
    points: Sequence[Sequence[float]] = json.loads(geometry)
    x, y = (sum(point[axis] for point in points) / len(points) for axis in (0, 1))
    row, column = (min(int(3 * value), 2) for value in (y, x))
    return f"{('top', 'middle', 'bottom')[row]} {('left', 'middle', 'right')[column]}".replace(
        "middle middle", "middle"
    )


def _interactions(connection: Connection, collection: str | None) -> dict[str, int]:
    interaction, judgement, image = tables.interaction, tables.judgement, tables.image
    rows = (
        select(interaction.c.kind, func.count(interaction.c.id))
        .join(judgement, judgement.c.id == interaction.c.id)
        .join(image, image.c.id == interaction.c.image_id)
        .where(COUNTS)
        .group_by(interaction.c.kind)
    )
    rows = rows if collection is None else rows.where(image.c.collection == collection)
    return {kind: count for kind, count in sorted(connection.execute(rows), key=lambda row: -row[1])}
