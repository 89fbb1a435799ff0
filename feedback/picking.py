"""Which two pictures to compare next: those to learn most from, or those that a model can be trained on best.

The store has no reward, so what a picture is worth is guessed from what was said of it: a normal distribution that
starts wide and narrows with every rating and every comparison. Only some pictures, drawn by lot, are looked at, so that
a pick takes no longer among a million. Pairs of blind trials come first. Some pairs that the rater has answered come
back with their sides exchanged, which is how self-agreement becomes known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import erf, exp, log, log2, pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import ColumnElement, FromClause, func, or_, select, union_all

from . import blind, tables
from . import derived_tables as derived
from .derived import COUNTS
from .results import Pair, Policy

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select

REPEATED = 0.075
"""The share of pairs that come back, where there are any."""

SETTLED = 5  # so many of a rater's latest comparisons do not come back yet
LOOKED_AT = 100  # comparisons in a row among which one is sought that may come back
PLACES, RUN = 4, 4  # pictures looked at: so many in a row from each of so many random places
DRAWN = PLACES * RUN
GROUPS, OF_A_GROUP = 5, 6  # prompts of those whose other pictures are looked at too, and how many on either side

PRIOR_MEAN, PRIOR_VARIANCE = 0.5, 0.25**2
RATING_VARIANCE = 0.2**2
CHOICE_VARIANCE = 0.4**2
"""Of what a picture is worth, 0 to 1: before anything was said, of one rating, and of one comparison."""

WON, LOST, TIED = 0.75, 0.25, 0.5  # what a comparison says of a picture

image, score, comparison, judgement = tables.image, derived.score, tables.comparison, tables.judgement


@dataclass(frozen=True)
class Candidate:
    """A picture, its prompt group, and what is known of its worth: mean and variance."""

    id: str
    group: str | None
    mean: float
    variance: float


def next_pair(
    connection: Connection,
    policy: Policy,
    collection: str | None,
    axis: str,
    rater: str | None,
    chance: np.random.Generator,
) -> Pair | None:
    """A pair picked by `policy`, or None where there are no two pictures that it could pick."""
    rater_id = None if rater is None else _rater_id(connection, rater)
    decided = _decided_by(connection, rater_id)
    share = REPEATED if decided > SETTLED else 0.0
    if rater_id is not None and chance.random() < share:
        if (pair := _repeat(connection, policy, collection, axis, rater_id, chance, share / decided)) is not None:
            return pair
    who = None if rater is None else rater_id or ""  # who never judged before has answered nothing
    if (pair := blind.next_pair(connection, collection, axis, who, chance)) is not None:
        return pair
    if collection is not None and blind.is_for_trials(connection, collection):
        return None
    ids = _candidates(connection, policy, collection, axis, chance)
    said = _comparisons(connection, ids, axis)
    known = _known(connection, ids, axis, said)
    mine = [row for row in said if rater is None or row.rater_id == rater_id]
    done = {frozenset((row.left_id, row.right_id)) for row in mine}
    pairs = [pair for pair in combinations(known, 2) if _fits(policy, *pair, done)]
    if not pairs:
        return None
    worth = np.array([(information if policy == "learn" else clearness)(*pair) for pair in pairs])
    odds = worth**2 + 1e-9  # squared, so that the best are picked often and yet nothing never
    odds /= odds.sum()
    picked = int(chance.choice(len(pairs), p=odds))
    left, right = pairs[picked] if chance.random() < 0.5 else pairs[picked][::-1]
    return Pair(left.id, right.id, policy, float(odds[picked]) * (1 - share))


def _fits(policy: Policy, one: Candidate, other: Candidate, done: set[frozenset[str]]) -> bool:
    if frozenset((one.id, other.id)) in done:
        return False
    return policy == "learn" or (one.group is not None and one.group == other.group)


# What a pair is worth


def information(one: Candidate, other: Candidate) -> float:
    """Bits that the answer is expected to tell about the two pictures, beyond the rater's own wavering.

    BALD for a probit choice, in the closed form of Houlsby et al., arXiv 1112.5745: the entropy of the answer less its
    mean entropy if both worths were known.
    """
    noise = 2 * RATING_VARIANCE
    gap, spread = (one.mean - other.mean) / sqrt(noise), (one.variance + other.variance) / noise
    square = pi * log(2) / 2
    wavering = sqrt(square / (spread + square)) * exp(-(gap**2) / (2 * (spread + square)))
    return max(0.0, _entropy(_normal(gap / sqrt(spread + 1))) - wavering)


def clearness(one: Candidate, other: Candidate) -> float:
    """How surely one of the two will be preferred: 0 for even odds, 1 for certainty."""
    spread = one.variance + other.variance + 2 * RATING_VARIANCE
    return 2 * _normal(abs(one.mean - other.mean) / sqrt(spread)) - 1


def _normal(z: float) -> float:
    return (1 + erf(z / sqrt(2))) / 2


def _entropy(p: float) -> float:
    return 0.0 if p <= 0 or p >= 1 else -p * log2(p) - (1 - p) * log2(1 - p)


def worth(ratings: Sequence[float], choices: Sequence[float]) -> tuple[float, float]:
    """(mean, variance) of what a picture is worth after ratings, and choices as WON, LOST or TIED."""
    precision = 1 / PRIOR_VARIANCE + len(ratings) / RATING_VARIANCE + len(choices) / CHOICE_VARIANCE
    total = PRIOR_MEAN / PRIOR_VARIANCE + sum(ratings) / RATING_VARIANCE + sum(choices) / CHOICE_VARIANCE
    return total / precision, 1 / precision


# Pictures to choose among


def _candidates(
    connection: Connection, policy: Policy, collection: str | None, axis: str, chance: np.random.Generator
) -> list[str]:
    everywhere = [] if collection is None else [image.c.collection == collection]
    ids = _drawn(connection, image, image.c.id, image.c.revision, everywhere, chance)
    if policy == "train":  # a picture that nothing was said of has no expected gap to any other
        scored = [score.c.axis == axis] + ([] if collection is None else [score.c.collection == collection])
        ids = _drawn(connection, score, score.c.image_id, score.c.image_revision, scored, chance) + ids[: DRAWN // 4]
        ids += _of_their_groups(connection, ids, everywhere, chance)
    return list(dict.fromkeys(ids))


def _drawn(
    connection: Connection,
    table: FromClause,
    id_: ColumnElement[str],
    place: ColumnElement[int],
    where: Sequence[ColumnElement[bool]],
    chance: np.random.Generator,
) -> list[str]:
    """Up to DRAWN distinct pictures, RUN in a row from each of some random places.

    What was recorded together lies together, also on the disk, so this is quick, and such pictures are often of one
    prompt, so that their comparison says more than one of apples and oranges.
    """
    first = select(id_).select_from(table).where(*where).order_by(place)
    few = connection.execute(first.limit(DRAWN + 1)).scalars().all()
    if len(few) <= DRAWN:
        return list(few)
    low, high = (select(end(place)).select_from(table).where(*where) for end in (func.min, func.max))
    ends = connection.execute(select(low.scalar_subquery(), high.scalar_subquery())).one()
    places = chance.integers(ends[0], ends[1] + 1, PLACES)
    return list(dict.fromkeys(_together(connection, [first.where(place >= int(at)).limit(RUN) for at in places])))


def _of_their_groups(
    connection: Connection, ids: Sequence[str], where: Sequence[ColumnElement[bool]], chance: np.random.Generator
) -> list[str]:
    """Pictures of the same prompts as these, those recorded next to them."""
    rows = select(image.c.prompt_key, func.min(image.c.revision)).group_by(image.c.prompt_key)
    rows = rows.where(image.c.id.in_(ids), image.c.prompt_key.is_not(None)).order_by(image.c.prompt_key)
    groups = connection.execute(rows).all()
    queries = []
    for number in chance.permutation(len(groups))[:GROUPS]:
        key, place = groups[number]
        of_group = select(image.c.id).where(*where, image.c.prompt_key == key).limit(OF_A_GROUP)
        queries.append(of_group.where(image.c.revision >= place).order_by(image.c.revision))
        queries.append(of_group.where(image.c.revision < place).order_by(image.c.revision.desc()))
    return _together(connection, queries)


def _together(connection: Connection, queries: Sequence[Select]) -> list[str]:
    """What several questions find, in one statement, because each waits for its answer."""
    if not queries:
        return []
    return list(connection.execute(union_all(*[select(query.subquery()) for query in queries])).scalars())


def _known(connection: Connection, ids: Sequence[str], axis: str, said: Sequence[Any]) -> list[Candidate]:
    current = derived.current_rating
    ratings: dict[str, list[float]] = {id_: [] for id_ in ids}
    rows = select(current.c.image_id, current.c.value).where(current.c.image_id.in_(ids), current.c.axis == axis)
    for row in connection.execute(rows):
        ratings[row.image_id].append(row.value)
    choices: dict[str, list[float]] = {id_: [] for id_ in ids}
    for row in said:
        for side, other in (("left", "right"), ("right", "left")):
            choice = {side: WON, other: LOST, "tie": TIED, "both_bad": LOST}.get(row.winner)
            if choice is not None and getattr(row, f"{side}_id") in choices:
                choices[getattr(row, f"{side}_id")].append(choice)
    rows = connection.execute(select(image.c.id, image.c.prompt_key).where(image.c.id.in_(ids)))
    groups = {row.id: row.prompt_key for row in rows}
    return [Candidate(id_, groups.get(id_), *worth(ratings[id_], choices[id_])) for id_ in ids]


def _comparisons(connection: Connection, ids: Sequence[str], axis: str) -> Sequence[Any]:
    rows = (
        select(comparison, judgement.c.rater_id)
        .join(judgement, judgement.c.id == comparison.c.id)
        .where(or_(comparison.c.left_id.in_(ids), comparison.c.right_id.in_(ids)), comparison.c.axis == axis, COUNTS)
    )
    return connection.execute(rows).all()


def _rater_id(connection: Connection, name: str) -> str | None:
    return connection.execute(select(tables.rater.c.id).where(tables.rater.c.name == name)).scalar()


# Pairs that come back


def _decided_by(connection: Connection, rater_id: str | None) -> int:
    tally = derived.rater_tally
    mine = select(tally.c.lefts + tally.c.rights).where(tally.c.rater_id == rater_id)
    return 0 if rater_id is None else connection.execute(mine).scalar() or 0


def _repeat(
    connection: Connection,
    policy: Policy,
    collection: str | None,
    axis: str,
    rater_id: str,
    chance: np.random.Generator,
    propensity: float,
) -> Pair | None:
    """An earlier decision of the rater to be asked again, sides exchanged."""
    mine = [judgement.c.rater_id == rater_id, judgement.c.kind == "comparison"]
    latest = select(judgement.c.revision).where(*mine).order_by(judgement.c.revision.desc()).offset(SETTLED).limit(1)
    high = connection.execute(latest).scalar()
    low = connection.execute(select(func.min(judgement.c.revision)).where(*mine)).scalar()
    if low is None or high is None:
        return None
    start = int(chance.integers(low, high + 1))
    for first in (start, low):
        some = select(judgement).where(*mine, judgement.c.revision.between(first, high))
        some = some.order_by(judgement.c.revision).limit(LOOKED_AT).subquery()
        rows = select(comparison).join(some, some.c.id == comparison.c.id).order_by(some.c.revision)
        rows = rows.where(comparison.c.axis == axis, comparison.c.winner.in_(("left", "right")), ~_undone(some.c.id))
        if collection is not None:
            rows = rows.join(image, image.c.id == comparison.c.left_id).where(image.c.collection == collection)
        if (found := connection.execute(rows.limit(1)).first()) is not None:
            return Pair(found.right_id, found.left_id, policy, propensity, found.id)
    return None


def _undone(id_: ColumnElement[str]) -> ColumnElement[bool]:
    undo = judgement.alias("undo")
    return select(undo.c.id).where(undo.c.supersedes == id_).exists()
