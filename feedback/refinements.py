"""Rounds of refinement: a picture, what was said of a place in it, what came out, and what somebody went on with."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from sqlalchemy import delete, insert, or_, select, update

from . import judging, tables
from .checks import MAX_NAME, InvalidRecord, NotFound, checked_number, checked_text
from .derived import COUNTS
from .queries import chunks
from .records import Comparison
from .refinement_tables import candidate, choice, refinement
from .writes import next_revision, now

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

How = Literal["said", "went on", "best"]
"""A person chose it, somebody refined it further, or it was the first in the order of a reward."""

MAX_CANDIDATES = 64
MAX_FAMILY = 2000  # rounds of one tree that are shown


@dataclass(frozen=True)
class Candidate:
    """A picture that came out of a round; score: of the reward that ordered them, if one did."""

    image_id: str
    score: float | None = None


@dataclass(frozen=True)
class Round:
    """One round as it is recorded. candidates: best first. mask: an 8-bit grey PNG of the parent's size, or None."""

    parent: str
    comment: str
    candidates: tuple[Candidate, ...]
    labels: tuple[str, ...] = ()
    mask: bytes | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked_text(self.comment, "The comment")
        for label in self.labels:
            checked_text(label, "The label", MAX_NAME, empty=False)
        if not 1 <= len(self.candidates) <= MAX_CANDIDATES:
            raise InvalidRecord(f"A round has 1 to {MAX_CANDIDATES} candidates, not {len(self.candidates)}.")
        for one in self.candidates:
            if one.score is not None:
                checked_number(one.score, "The score")


@dataclass(frozen=True)
class StoredRound:
    """A round as it lies in the store. accepted: the candidate that somebody went on with, None for none of them.

    decided: whether anything was chosen yet, and `how`.
    """

    id: str
    parent: str
    comment: str
    labels: tuple[str, ...]
    mask: bytes | None
    settings: dict[str, Any]
    candidates: tuple[Candidate, ...]
    created_at: datetime
    accepted: str | None = None
    decided: bool = False
    how: How | None = None


@dataclass(frozen=True)
class Family:
    """Everything that came out of one first picture, the rounds in the order in which they were made."""

    root: str
    rounds: tuple[StoredRound, ...]


def add(connection: Connection, made: Round, rater: str = "ComfyUI") -> str:
    """Records a round and returns its id; the parent counts as chosen where it is a candidate of a round before.

    Raises NotFound for an unknown picture.
    """
    for image_id in (made.parent, *(one.image_id for one in made.candidates)):
        _check_image(connection, image_id)
    _went_on(connection, made.parent, rater)
    id_ = str(uuid.uuid4())
    connection.execute(
        insert(refinement).values(
            id=id_,
            parent_id=made.parent,
            comment=made.comment,
            labels=json.dumps(made.labels),
            mask=made.mask,
            settings=json.dumps(made.settings, sort_keys=True, allow_nan=False, default=str),
            created_at=now(),
            revision=next_revision(connection),
        )
    )
    rows = [
        {"refinement_id": id_, "place": place, "image_id": one.image_id, "score": one.score}
        for place, one in enumerate(made.candidates)
    ]
    connection.execute(insert(candidate), rows)
    return id_


def _went_on(connection: Connection, parent: str, rater: str) -> None:
    decided = select(choice.c.id).where(choice.c.refinement_id == candidate.c.refinement_id, choice.c.how != "best")
    rows = select(candidate.c.refinement_id).where(candidate.c.image_id == parent, ~decided.exists()).distinct()
    for round_id in connection.execute(rows).scalars().all():
        _choose(connection, round_id, parent, rater, "went on")


def accept(connection: Connection, round_id: str, image_id: str | None, rater: str, how: How = "said") -> str:
    """Chooses a candidate of a round, or none; returns the id of the choice. The latest choice counts.

    What a person says so is kept as comparisons too: the accepted one over the other candidates and, half as clearly,
    over the parent; where none was good, the parent over all. Their own earlier choice in this round is taken back.
    Raises NotFound, InvalidRecord for a picture that is not in the round.
    """
    if how not in get_args(How):
        raise InvalidRecord(f"The way of choosing is one of {', '.join(get_args(How))}, not {how!r}.")
    checked_text(rater, "The rater's name", MAX_NAME, empty=False)
    found = round_by_id(connection, round_id)
    others = {one.image_id for one in found.candidates}
    if image_id is not None and image_id not in others:
        raise InvalidRecord("The picture is none of this round's candidates; choose one of them, or none.")
    if how == "said":
        _compare(connection, found, image_id, rater)
    return _choose(connection, round_id, image_id, rater, how)


def _choose(connection: Connection, round_id: str, image_id: str | None, rater: str, how: str) -> str:
    id_ = str(uuid.uuid4())
    row = {"refinement_id": round_id, "image_id": image_id, "how": how, "created_at": now()}
    rater_id = judging.rater_named(connection, rater)
    connection.execute(insert(choice).values(id=id_, rater_id=rater_id, revision=next_revision(connection), **row))
    return id_


def _compare(connection: Connection, found: StoredRound, accepted: str | None, rater: str) -> None:
    policy = f"refine {found.id}"
    for earlier in _said_so(connection, policy, rater):
        judging.insert_undo(connection, earlier, rater, clear=False)
    better = found.parent if accepted is None else accepted
    worse = [one.image_id for one in found.candidates] + ([] if accepted is None else [found.parent])
    for other in dict.fromkeys(worse):
        if other != better:
            strength = 0.5 if found.parent in (better, other) else None
            said = Comparison(better, other, "left", rater, strength=strength, policy=policy)
            judging.insert_comparison(connection, said)


def _said_so(connection: Connection, policy: str, rater: str) -> list[str]:
    comparison, judgement = tables.comparison, tables.judgement
    rows = (
        select(comparison.c.id)
        .join(judgement, judgement.c.id == comparison.c.id)
        .join(tables.rater, tables.rater.c.id == judgement.c.rater_id)
        .where(comparison.c.policy == policy, tables.rater.c.name == rater, COUNTS)
    )
    return list(connection.execute(rows).scalars())


def _check_image(connection: Connection, image_id: str) -> None:
    if connection.execute(select(tables.image.c.id).where(tables.image.c.id == image_id)).first() is None:
        raise NotFound(f"There is no picture {image_id!r} in the feedback database.")


# Questions


def with_pixels(connection: Connection, pixel_hash: str, collection: str | None = None) -> list[str]:
    """The pictures that show exactly this, the newest first."""
    image = tables.image
    rows = select(image.c.id).where(image.c.pixel_hash == pixel_hash).order_by(image.c.revision.desc())
    if collection is not None:
        rows = rows.where(image.c.collection == collection)
    return list(connection.execute(rows).scalars())


def known_as(connection: Connection, pixel_hash: str) -> str | None:
    """Of the pictures that show exactly this, the one to go on from: it came out of a round, else it is marked, else
    the first; None if there is none."""
    if (found := _in_a_round(connection, pixel_hash)) is not None:
        return found
    same, marked = with_pixels(connection, pixel_hash)[::-1], tables.region.c.image_id
    for some in chunks(same):
        if (found := connection.execute(select(marked).where(marked.in_(some)).limit(1)).scalar()) is not None:
            return found
    return same[0] if same else None


def round_by_id(connection: Connection, round_id: str) -> StoredRound:
    """One round. Raises NotFound."""
    found = _rounds(connection, select(refinement).where(refinement.c.id == round_id))
    if not found:
        raise NotFound(f"There is no round {round_id!r} in the feedback database.")
    return found[0]


def rounds_from(connection: Connection, image_ids: Sequence[str]) -> list[StoredRound]:
    """The rounds that began with one of these pictures, oldest first."""
    return _rounds(connection, select(refinement).where(refinement.c.parent_id.in_(image_ids)))


def all_rounds(connection: Connection, limit: int = MAX_FAMILY) -> list[StoredRound]:
    """The latest rounds, oldest first."""
    latest = select(refinement.c.id).order_by(refinement.c.revision.desc()).limit(limit)
    return _rounds(connection, select(refinement).where(refinement.c.id.in_(latest)))


def family(connection: Connection, image_id: str) -> Family:
    """The first picture that this one came from and every round since. Raises NotFound for an unknown picture.

    A picture that was recorded twice, as in two collections, has one family.
    """
    image = tables.image
    shown = connection.execute(select(image.c.pixel_hash).where(image.c.id == image_id)).scalar()
    if shown is None:
        raise NotFound(f"There is no picture {image_id!r} in the feedback database.")
    ours = or_(
        select(candidate.c.place).where(candidate.c.image_id == image_id).exists(),
        select(refinement.c.id).where(refinement.c.parent_id == image_id).exists(),
    )
    if connection.execute(select(image.c.id).where(image.c.id == image_id, ours)).first() is None:
        image_id = _in_a_round(connection, shown) or image_id
    root = _root(connection, image_id)
    rounds: dict[str, StoredRound] = {}
    waiting = [root]
    while waiting and len(rounds) < MAX_FAMILY:
        new = [one for one in rounds_from(connection, waiting) if one.id not in rounds]
        rounds |= {one.id: one for one in new}
        waiting = list(dict.fromkeys(made.image_id for one in new for made in one.candidates))
    return Family(root, tuple(sorted(rounds.values(), key=lambda one: one.created_at)))


def _in_a_round(connection: Connection, pixel_hash: str) -> str | None:
    same = with_pixels(connection, pixel_hash)
    for column in (candidate.c.image_id, refinement.c.parent_id):
        for some in chunks(same):
            if (found := connection.execute(select(column).where(column.in_(some)).limit(1)).scalar()) is not None:
                return found
    return None


def _root(connection: Connection, image_id: str) -> str:
    """Upwards by the first round that each picture came out of; a circle, which only equal pictures make, ends it."""
    seen = {image_id}
    while True:
        rows = (
            select(refinement.c.parent_id)
            .join(candidate, candidate.c.refinement_id == refinement.c.id)
            .where(candidate.c.image_id == image_id)
            .order_by(refinement.c.revision)
        )
        above = next((one for one in connection.execute(rows).scalars() if one not in seen), None)
        if above is None:
            return image_id
        seen.add(above)
        image_id = above


def _rounds(connection: Connection, rows: Any) -> list[StoredRound]:
    found = connection.execute(rows.order_by(refinement.c.revision)).all()
    ids = [row.id for row in found]
    candidates: dict[str, list[Candidate]] = {id_: [] for id_ in ids}
    of_them = select(candidate).where(candidate.c.refinement_id.in_(ids)).order_by(candidate.c.place)
    for row in connection.execute(of_them):
        candidates[row.refinement_id].append(Candidate(row.image_id, row.score))
    choices: dict[str, Row[Any]] = {}
    chosen = select(choice).where(choice.c.refinement_id.in_(ids)).order_by(choice.c.revision)
    for row in connection.execute(chosen):
        choices[row.refinement_id] = row
    return [_stored(row, candidates[row.id], choices.get(row.id)) for row in found]


def _stored(row: Row[Any], candidates: Sequence[Candidate], chosen: Row[Any] | None) -> StoredRound:
    labels, settings = tuple(json.loads(row.labels)), json.loads(row.settings)
    said = (row.id, row.parent_id, row.comment, labels, row.mask, settings, tuple(candidates), row.created_at)
    return StoredRound(*said) if chosen is None else StoredRound(*said, chosen.image_id, True, chosen.how)


# Deletion


def forget(connection: Connection, image_id: str) -> None:
    """Takes a picture out of all rounds, and the rounds that it began, or that have no candidate left."""
    connection.execute(update(choice).where(choice.c.image_id == image_id).values(image_id=None))
    connection.execute(delete(candidate).where(candidate.c.image_id == image_id))
    empty = ~select(candidate.c.place).where(candidate.c.refinement_id == refinement.c.id).exists()
    gone = select(refinement.c.id).where(or_(refinement.c.parent_id == image_id, empty))
    for round_id in connection.execute(gone).scalars().all():
        connection.execute(delete(choice).where(choice.c.refinement_id == round_id))
        connection.execute(delete(candidate).where(candidate.c.refinement_id == round_id))
        connection.execute(delete(refinement).where(refinement.c.id == round_id))
