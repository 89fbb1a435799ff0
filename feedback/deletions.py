"""Taking pictures out of the store with all that was said of them. Runs in the one writing transaction.

This is the one thing that removes judgements: everything else only adds to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, delete, func, or_, select, update

from . import blind, blind_tables, derived, refinement_tables, refinements, tables
from . import derived_tables as kept
from .checks import NotFound
from .prompt_words import remove_words
from .queries import chunks, revision

if TYPE_CHECKING:
    from sqlalchemy import Connection

AT_ONCE = 100  # pictures in one transaction, so that nobody waits long to write

image, generation, judgement = tables.image, tables.generation, tables.judgement
comparison, entry = tables.comparison, tables.ranking_entry
OF_ONE_IMAGE = (tables.comment, tables.rating, tables.region, tables.word_mark, tables.tag, tables.interaction)
"""Comments come first, because one can be about a rating."""


@dataclass(frozen=True)
class Gone:
    """Pictures that were taken out, and hashes of files that no picture has any more."""

    images: tuple[str, ...]
    files: tuple[str, ...]


def delete_image(connection: Connection, image_id: str) -> Gone:
    """Takes out a picture and every judgement of it. Raises NotFound."""
    row = connection.execute(select(image).where(image.c.id == image_id)).first()
    if row is None:
        raise NotFound(f"There is no picture {image_id!r} in the feedback database.")
    for table in (kept.current_rating, kept.score, kept.watermark_score, tables.embedding):
        connection.execute(delete(table).where(table.c.image_id == image_id))
    refinements.forget(connection, image_id)
    blind.forget(connection, image_id)
    _delete_judgements(connection, _said_of(connection, image_id))
    result = tables.interaction.c.result_id
    connection.execute(update(tables.interaction).where(result == image_id).values(result_id=None))
    documents = connection.execute(
        select(generation.c.api_prompt_hash, generation.c.workflow_hash).where(generation.c.image_id == image_id)
    ).one()
    connection.execute(delete(generation).where(generation.c.image_id == image_id))
    connection.execute(delete(image).where(image.c.id == image_id))
    remove_words(connection, row.revision)
    _delete_documents(connection, [hash_ for hash_ in documents if hash_ is not None])
    derived.add_to_tally(connection, "collection", row.collection, -1)
    derived.set_revision(connection, revision(connection) + 1)
    same_file = select(image.c.id).where(image.c.file_hash == row.file_hash).limit(1)
    if connection.execute(same_file).first() is not None:
        return Gone((image_id,), ())
    derived.add_to_tally(connection, "store", "media_bytes", -row.bytes)
    return Gone((image_id,), (row.file_hash,))


def _said_of(connection: Connection, image_id: str) -> list[str]:
    """Ids of the judgements that are of this picture alone or of it and one other; rankings that keep too few."""
    ids: list[str] = []
    for table in OF_ONE_IMAGE:
        ids += connection.execute(select(table.c.id).where(table.c.image_id == image_id)).scalars()
    with_it = or_(comparison.c.left_id == image_id, comparison.c.right_id == image_id)
    ids += connection.execute(select(comparison.c.id).where(with_it)).scalars()
    rankings = connection.execute(select(entry.c.ranking_id).where(entry.c.image_id == image_id)).scalars().all()
    connection.execute(delete(entry).where(entry.c.image_id == image_id))
    for ranking_id in rankings:
        left = select(func.count()).where(entry.c.ranking_id == ranking_id)
        if connection.execute(left).scalar_one() < 2:
            connection.execute(delete(entry).where(entry.c.ranking_id == ranking_id))
            ids.append(ranking_id)
    return ids


def _delete_judgements(connection: Connection, ids: Sequence[str]) -> None:
    for some in chunks(ids):
        whose = select(judgement.c.rater_id).where(judgement.c.id.in_(some)).distinct()
        raters = connection.execute(whose).scalars().all()
        _uncount(connection, some)
        for table in (*OF_ONE_IMAGE, comparison, tables.ranking):
            connection.execute(delete(table).where(table.c.id.in_(some)))
        connection.execute(delete(judgement).where(judgement.c.supersedes.in_(some)))
        connection.execute(delete(judgement).where(judgement.c.id.in_(some)))
        for rater_id in raters:
            derived.refresh_times(connection, rater_id)


def _uncount(connection: Connection, ids: Sequence[str]) -> None:
    counted = select(judgement.c.rater_id, judgement.c.kind, func.count()).where(judgement.c.id.in_(ids))
    rows = counted.where(derived.COUNTS).group_by(judgement.c.rater_id, judgement.c.kind)
    for rater_id, kind, count in connection.execute(rows).all():
        derived.add_to_tally(connection, "kind", kind, -count)
        derived.add_to_rater(connection, rater_id, judgements=-count)
    pairs = (
        select(judgement.c.rater_id, comparison.c.axis, comparison.c.left_id, comparison.c.right_id)
        .add_columns(comparison.c.winner)
        .join(judgement, judgement.c.id == comparison.c.id)
        .where(comparison.c.id.in_(ids), derived.COUNTS)
    )
    seen: set[tuple[str, str, frozenset[str]]] = set()
    for rater_id, axis, left, right, winner in connection.execute(pairs).all():
        if winner in ("left", "right"):
            derived.add_to_rater(connection, rater_id, **{f"{winner}s": -1})
        if (pair := (rater_id, axis, frozenset((left, right)))) not in seen:
            seen.add(pair)
            found = derived.agreement_on(connection, rater_id, axis, left, right)
            derived.add_to_rater(connection, rater_id, same=-found.same, repeats=-found.repeats)


def _delete_documents(connection: Connection, hashes: Sequence[str]) -> None:
    """Forgets graphs that made no other picture."""
    for hash_ in set(hashes):
        used = or_(generation.c.api_prompt_hash == hash_, generation.c.workflow_hash == hash_)
        if connection.execute(select(generation.c.image_id).where(used).limit(1)).first() is None:
            connection.execute(delete(tables.document).where(tables.document.c.hash == hash_))


def unjudged(connection: Connection, limit: int = AT_ONCE) -> list[str]:
    """Some pictures of which nobody ever said anything, oldest first."""
    rows = select(image.c.id).where(*_nothing_said()).order_by(image.c.revision).limit(limit)
    return list(connection.execute(rows).scalars())


def _nothing_said() -> list[ColumnElement[bool]]:
    columns = [table.c.image_id for table in (*OF_ONE_IMAGE, entry)]
    columns += [comparison.c.left_id, comparison.c.right_id, tables.interaction.c.result_id]
    columns += [refinement_tables.refinement.c.parent_id, refinement_tables.candidate.c.image_id]
    columns += [blind_tables.pair.c.a_id, blind_tables.pair.c.b_id]
    return [~select(column).where(column == image.c.id).exists() for column in columns]


def delete_unjudged(connection: Connection, ids: Sequence[str]) -> Gone:
    """Takes out those of the pictures of which still nobody said anything."""
    still = connection.execute(select(image.c.id).where(image.c.id.in_(ids), *_nothing_said())).scalars().all()
    gone = [delete_image(connection, image_id) for image_id in still]
    return Gone(tuple(id_ for one in gone for id_ in one.images), tuple(hash_ for one in gone for hash_ in one.files))


def unused(connection: Connection, file_hash: str) -> bool:
    """Whether no picture has this file."""
    return connection.execute(select(image.c.id).where(image.c.file_hash == file_hash).limit(1)).first() is None
