"""Blind trials: people compare the pictures of two models, and nothing tells them which model made which.

Pairs of the same prompt and seed go into the store, in an order drawn by lot and with nothing on them that tells; who
is asked for a pair gets one of them first, its sides drawn by lot. What is answered are comparisons as any other. Which
picture is whose stands in tables of their own, from which the votes are counted.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update

from . import tables
from .blind_tables import pair, trial
from .checks import MAX_NAME, InvalidRecord, NotFound, checked_text
from .derived import COUNTS, OVERALL
from .records import Generation
from .results import Pair, Picked
from .writes import next_revision, now

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .evaluation import Interval
    from .store import FeedbackStore

POLICY: Picked = "blind"
ASKED_AMONG = 1000  # pairs without my answer among which one is drawn
VALUES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}
"""What an answer gives to the left picture; who skips says nothing."""

comparison, judgement = tables.comparison, tables.judgement

OF_IT = or_(
    and_(comparison.c.left_id == pair.c.a_id, comparison.c.right_id == pair.c.b_id),
    and_(comparison.c.left_id == pair.c.b_id, comparison.c.right_id == pair.c.a_id),
)
"""A comparison of the pair's pictures, either way round."""


@dataclass(frozen=True)
class BlindPair:
    """The same prompt and seed by A and by B: uint8 (H, W, 3) each."""

    prompt: str
    a: np.ndarray
    b: np.ndarray
    seed: int | None = None


@dataclass(frozen=True)
class Vote:
    """What one rater said last of one pair: 1 for B, 0 for A, 0.5 for neither."""

    place: int
    prompt: str | None
    rater: str
    value: float


@dataclass(frozen=True)
class Tally:
    """The state of a trial. win_rate: share of the votes for B, ties half, nan before the first; 95 % interval.

    pairs: that can be asked; alike: those whose pictures are the same to the pixel, which nobody is asked about.
    answered: pairs with a vote.
    """

    pairs: int
    alike: int
    answered: int
    votes: int
    raters: int
    wins: int
    ties: int
    losses: int
    win_rate: Interval


def put(store: FeedbackStore, name: str, collection: str, pairs: Sequence[BlindPair]) -> None:
    """Puts the pairs before people, once for each name; a trial that is there stays as it is.

    Raises InvalidRecord where there is no pair, media.BadPicture for what is no picture.
    """
    checked_text(name, "The name of the trial", MAX_NAME, empty=False)
    if not pairs:
        raise InvalidRecord("There is no pair to ask people about: give at least one.")
    if not store.ask(lambda c: is_there(c, name)):
        ids = _recorded(store, collection, pairs)
        store.note(lambda c: _insert(c, name, collection, ids))


def _recorded(store: FeedbackStore, collection: str, pairs: Sequence[BlindPair]) -> list[tuple[str, str]]:
    """Ids of A's and B's picture of each pair; lots decide the order, by which they could be told apart."""
    pictures = [
        (picture, Generation(prompt=one.prompt, seed=None if one.seed is None else str(one.seed)))
        for one in pairs
        for picture in (one.a, one.b)
    ]
    order = np.random.default_rng().permutation(len(pictures))
    recorded = store.add_images([pictures[i] for i in order], collection)
    ids = {int(place): image_id for place, image_id in zip(order, recorded, strict=True)}
    return [(ids[2 * i], ids[2 * i + 1]) for i in range(len(pairs))]


def _insert(connection: Connection, name: str, collection: str, ids: Sequence[tuple[str, str]]) -> None:
    if is_there(connection, name):
        return
    made = {"id": str(uuid.uuid4()), "revision": next_revision(connection), "created_at": now()}
    connection.execute(insert(trial).values(name=name, collection=collection, **made))
    rows = [{"trial_id": made["id"], "place": place, "a_id": a, "b_id": b} for place, (a, b) in enumerate(ids)]
    connection.execute(insert(pair), rows)


def close(connection: Connection, name: str) -> None:
    """From now on nobody is asked about this trial; its votes stay. Raises NotFound."""
    _id(connection, name)
    ended = update(trial).where(trial.c.name == name, trial.c.closed_at.is_(None))
    connection.execute(ended.values(closed_at=now(), revision=next_revision(connection)))


def forget(connection: Connection, image_id: str) -> None:
    """Takes a picture that is deleted out of all trials, with the pairs that it was part of."""
    connection.execute(delete(pair).where(or_(pair.c.a_id == image_id, pair.c.b_id == image_id)))


# Questions


def is_there(connection: Connection, name: str) -> bool:
    return connection.execute(select(trial.c.id).where(trial.c.name == name)).first() is not None


def pictures(connection: Connection) -> set[str]:
    """Every picture that people are, or were, asked about in a trial."""
    rows = connection.execute(select(pair.c.a_id, pair.c.b_id)).all()
    return {id_ for row in rows for id_ in row}


def is_for_trials(connection: Connection, collection: str) -> bool:
    """Whether a collection holds blind trials: whoever compares in it is asked nothing else."""
    return connection.execute(select(trial.c.id).where(trial.c.collection == collection).limit(1)).first() is not None


def next_pair(
    connection: Connection, collection: str | None, axis: str, rater_id: str | None, chance: np.random.Generator
) -> Pair | None:
    """A pair of an open trial that the rater (None: anybody) has not answered, of those with the fewest votes."""
    if axis != OVERALL:
        return None
    mine = [] if rater_id is None else [judgement.c.rater_id == rater_id]
    votes = _said(func.count()).scalar_subquery().label("votes")
    open_ = [trial.c.closed_at.is_(None), pair.c.a_id != pair.c.b_id, ~_said(comparison.c.id, *mine).exists()]
    rows = select(pair.c.a_id, pair.c.b_id, votes).join(trial, trial.c.id == pair.c.trial_id).where(*open_)
    if collection is not None:
        rows = rows.where(trial.c.collection == collection)
    found = connection.execute(rows.order_by(votes, pair.c.trial_id, pair.c.place).limit(ASKED_AMONG)).all()
    fewest = [row for row in found if row.votes == found[0].votes]
    if not fewest:
        return None
    picked = fewest[int(chance.integers(len(fewest)))]
    left, right = (picked.a_id, picked.b_id) if chance.random() < 0.5 else (picked.b_id, picked.a_id)
    return Pair(left, right, POLICY, 1 / len(fewest))


def _said(what: Any, *more: ColumnElement[bool]) -> Any:
    """Comparisons of the pair that count."""
    rows = select(what).select_from(comparison).join(judgement, judgement.c.id == comparison.c.id)
    return rows.where(OF_IT, comparison.c.axis == OVERALL, COUNTS, *more).correlate(pair)


def votes(connection: Connection, name: str) -> list[Vote]:
    """The last answer of each rater on each pair of a trial; who skipped said nothing. Raises NotFound."""
    made = tables.generation
    rows = (
        select(pair.c.place, pair.c.b_id, comparison.c.left_id, comparison.c.winner)
        .add_columns(made.c.prompt, tables.rater.c.name.label("rater"))
        .join(comparison, OF_IT)
        .join(judgement, judgement.c.id == comparison.c.id)
        .join(tables.rater, tables.rater.c.id == judgement.c.rater_id)
        .join(made, made.c.image_id == pair.c.a_id)
        .where(pair.c.trial_id == _id(connection, name), comparison.c.axis == OVERALL, COUNTS)
        .order_by(judgement.c.revision)
    )
    found = {}
    for row in connection.execute(rows):
        if (value := VALUES.get(row.winner)) is not None:
            for_b = value if row.left_id == row.b_id else 1 - value
            found[row.place, row.rater] = Vote(row.place, row.prompt, row.rater, for_b)
    return list(found.values())


def tally(connection: Connection, name: str) -> Tally:
    """How a trial stands. The interval counts prompts where there are enough of them, else pairs. Raises NotFound."""
    said, id_ = votes(connection, name), _id(connection, name)
    asked = connection.execute(select(pair.c.a_id != pair.c.b_id).where(pair.c.trial_id == id_)).scalars().all()
    values = [vote.value for vote in said]
    return Tally(
        pairs=sum(asked),
        alike=len(asked) - sum(asked),
        answered=len({vote.place for vote in said}),
        votes=len(said),
        raters=len({vote.rater for vote in said}),
        wins=values.count(1.0),
        ties=values.count(0.5),
        losses=values.count(0.0),
        win_rate=_win_rate(said),
    )


def _win_rate(said: Sequence[Vote]) -> Interval:
    """Of votes that all agree nothing says how much those on one pair are worth, so each pair counts once."""
    from . import evaluation  # which brings torch, that the store does without

    values, places = [vote.value for vote in said], [vote.place for vote in said]
    if not values or min(values) == max(values) in (0.0, 1.0):
        pairs = len(set(places))
        return evaluation.wilson(pairs * max(values, default=0.0), pairs)
    prompts = [vote.prompt for vote in said]
    units = prompts if len(set(prompts)) >= evaluation.FEW_PROMPTS else places
    return evaluation.win_rate(values, units if len(set(units)) < len(values) else None)


def _id(connection: Connection, name: str) -> str:
    found = connection.execute(select(trial.c.id).where(trial.c.name == name)).scalar()
    if found is None:
        raise NotFound(f"There is no blind trial {name!r} in the feedback database.")
    return found
