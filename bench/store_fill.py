"""Fills a feedback database with pictures and judgements by SQL, as quickly as the disk allows.

Of every ten pictures nine have up to three ratings, each by another rater; the rest of the judgements are comparisons.
Ids are spread like random ones. Indexes are dropped first and made again at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, text

from feedback_loop.feedback import derived, derived_tables, prompt_words, tables

RATERS = 20
COLLECTIONS = 10
ROUNDS = 3  # of ratings; judgements beyond them are comparisons
WORDS = "red blue green circle square cat dog house tree sky moon sea light dark old new".split()


class Words:
    """What the two databases write differently."""

    def __init__(self, connection: Connection) -> None:
        self.sqlite = connection.dialect.name == "sqlite"

    def id(self, kind: int, x: str) -> str:
        spread = f"(({x}) * 2654435761) % 4294967296"
        if self.sqlite:
            return f"printf('%08x-{kind}000-4000-8000-%012x', {spread}, {x})"
        bits = f"lpad(to_hex(({x})::bigint), 12, '0')"
        return f"lpad(to_hex((({x})::bigint * 2654435761) % 4294967296), 8, '0') || '-{kind}000-4000-8000-' || {bits}"

    def time(self, x: str) -> str:
        if self.sqlite:
            return f"datetime('2020-01-01', '+' || ({x}) || ' seconds') || '.000000'"
        return f"timestamptz '2020-01-01 00:00:00+00' + ({x}) * interval '1 second'"

    def word(self, x: str) -> str:
        if self.sqlite:
            return f"""json_extract('["{'","'.join(WORDS)}"]', '$[' || (({x}) % {len(WORDS)}) || ']')"""
        return f"(ARRAY{WORDS})[1 + ({x}) % {len(WORDS)}]"

    def series(self, count: int) -> str:
        if self.sqlite:
            rising = f"SELECT 0 UNION ALL SELECT i + 1 FROM s WHERE i < {count - 1}"
            return f"(WITH RECURSIVE s(i) AS ({rising}) SELECT i FROM s)"
        return f"(SELECT generate_series(0::bigint, {count - 1}) AS i) AS s"


def fill(engine: Engine, images: int, judgements: int, say: Callable[[str], None]) -> None:
    """Makes an empty, migrated database one of this size."""
    began = time.perf_counter()
    with engine.connect() as connection:
        _relax(connection)
        prompt_words.begin_anew(connection)
        dropped = _drop_indexes(connection)
        connection.commit()
        for name, statements in _statements(Words(connection), images, judgements).items():
            for statement in statements:
                connection.exec_driver_sql(statement.replace("%", "%%") if not Words(connection).sqlite else statement)
            connection.commit()
            say(f"{name}: {time.perf_counter() - began:.0f} s")
        if Words(connection).sqlite:
            _fill_vocabulary(connection, images)
        for statement in dropped:
            connection.exec_driver_sql(statement)
        connection.commit()
        say(f"indexes: {time.perf_counter() - began:.0f} s")
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        say(f"vacuum: {time.perf_counter() - began:.0f} s")


def _fill_vocabulary(connection: Connection, images: int) -> None:
    known = f"INSERT INTO {prompt_words.VOCABULARY} VALUES (?)"
    words = [*WORDS, *(f"n{number}" for number in range((images + 3) // 4))]
    connection.exec_driver_sql(known, [(word,) for word in words])


def _relax(connection: Connection) -> None:
    """Nothing here is worth a sync, and what refers to what is known to be right."""
    if connection.dialect.name == "sqlite":
        for pragma in ("foreign_keys=OFF", "synchronous=OFF", "journal_mode=OFF", "cache_size=-800000"):
            connection.exec_driver_sql(f"PRAGMA {pragma}")
    else:
        for setting in (
            "session_replication_role = replica",
            "synchronous_commit = off",
            "maintenance_work_mem = '1GB'",
        ):
            connection.exec_driver_sql(f"SET {setting}")


def _drop_indexes(connection: Connection) -> list[str]:
    """The statements that make them again."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    else:
        query = (
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' "
            "AND indexname NOT IN (SELECT conname FROM pg_constraint)"
        )
    found = connection.exec_driver_sql(query).all()
    for name, _ in found:
        connection.exec_driver_sql(f'DROP INDEX "{name}"')
    return [definition for _, definition in found]


def _statements(w: Words, images: int, judgements: int) -> dict[str, list[str]]:
    im, jd, turn = f"i % {images}", w.id(1, "i"), f"(i / {images})"
    rated = f"({turn} < {ROUNDS} AND ({im}) % 10 <> 3)"
    rater = f"'rater-' || (({im} + {turn} * 7) % {RATERS})"
    other = f"(({im}) * 48271 + {turn} * 7919 + 1) % {images}"
    other = f"CASE WHEN {other} = {im} THEN ({im} + 1) % {images} ELSE {other} END"
    value, every = "((i * 7919 % 5) / 4.0)", w.series(judgements)
    prompt = " || ' ' || ".join(w.word(f"(i / 4) * {k} + {k}") for k in (1, 3, 7, 11, 5)) + " || ' n' || (i / 4)"
    was_rated = f"CASE WHEN i % 10 <> 3 AND i < {judgements} THEN 1 ELSE 0 END"
    vector = "prompt" if w.sqlite else "array_to_tsvector(string_to_array(prompt, ' '))"
    tally = "INSERT INTO tally (what, name, value)"
    score = "image_id, axis, value, ratings, collection, image_revision"
    return {
        "pictures": [
            f"INSERT INTO rater (id, name, created_at) SELECT 'rater-' || i, 'rater ' || i, {w.time('i')} "
            f"FROM {w.series(RATERS)}",
            "INSERT INTO image (id, collection, identity, file_hash, pixel_hash, width, height, mime, bytes, "
            f"created_at, revision, prompt_key, rated) SELECT "
            f"{w.id(0, 'i')}, 'c' || (i % {COLLECTIONS}), 'i' || i, 'f' || i, "
            f"'p' || i, 512, 512, 'image/png', 400000, {w.time('i * 60')}, i + 1, 'g' || (i / 4), {was_rated} "
            f"FROM {w.series(images)}",
            "INSERT INTO generation (image_id, batch_index, prompt, seed, steps, cfg, versions) "
            f"SELECT {w.id(0, 'i')}, 0, {prompt}, CAST(i AS TEXT), 20, 7.0, '{{}}' FROM {w.series(images)}",
            f"INSERT INTO prompt_text (rowid, words) SELECT revision, {vector} FROM image JOIN generation "
            "ON image_id = image.id ORDER BY revision",
            "INSERT INTO watermark_score (image_id, value, collection, image_revision) SELECT id, "
            "(revision * 7919 % 1000) / 1000.0, collection, revision FROM image WHERE revision % 2 = 0",
        ],
        "judgements": [
            "INSERT INTO judgement (id, kind, rater_id, created_at, revision) SELECT "
            f"{jd}, CASE WHEN {rated} THEN 'rating' ELSE 'comparison' END, {rater}, {w.time('i * 12')}, "
            f"{images} + 1 + i FROM {every}",
            "INSERT INTO rating (id, image_id, axis, value, raw, scale_min, scale_max, lead_time) SELECT "
            f"{jd}, {w.id(0, im)}, 'overall', {value}, 1 + {value} * 4, 1, 5, 2.5 FROM {every} WHERE {rated}",
            "INSERT INTO comparison (id, left_id, right_id, axis, winner, lead_time) SELECT "
            f"{jd}, {w.id(0, im)}, {w.id(0, other)}, 'overall', CASE WHEN i * 7919 % 2 = 0 THEN 'left' ELSE 'right' "
            f"END, 1.5 FROM {every} WHERE NOT {rated}",
        ],
        "counts": [
            "INSERT INTO current_rating (image_id, axis, rater_id, rating_id, value, image_revision) SELECT "
            f"{w.id(0, im)}, 'overall', {rater}, {jd}, {value}, {im} + 1 FROM {every} WHERE {rated}",
            f"INSERT INTO score ({score}) SELECT image_id, axis, avg(r.value), count(*), collection, image_revision "
            "FROM current_rating r JOIN image ON image.id = image_id "
            "GROUP BY image_id, axis, collection, image_revision",
            f"{tally} SELECT 'kind', kind, count(*) FROM judgement GROUP BY kind",
            f"{tally} SELECT 'collection', collection, count(*) FROM image GROUP BY collection",
            f"{tally} VALUES ('store', 'raters', {RATERS}), ('store', 'media_bytes', {images * 400000})",
            "INSERT INTO rater_tally (rater_id, judgements, lefts, rights, repeats, same, times) "
            "SELECT rater_id, count(*), sum(CASE WHEN winner = 'left' THEN 1 ELSE 0 END), "
            "sum(CASE WHEN winner = 'right' THEN 1 ELSE 0 END), 0, 0, '2.5,1.5,2.5,2.5,' "
            "FROM judgement LEFT JOIN comparison ON comparison.id = judgement.id GROUP BY rater_id",
            f"UPDATE counter SET value = {images + judgements} WHERE name = 'revision'",
            f"DELETE FROM counter WHERE name IN ('{derived.COUNTED}', '{derived.JUDGED}')",
            f"INSERT INTO counter (name, value) VALUES ('{derived.COUNTED}', {derived.VERSION}), "
            f"('{derived.JUDGED}', {images + judgements})",
        ],
    }


def picture_ids(connection: Connection, count: int) -> list[str]:
    """Some of the pictures."""
    rows: Any = text("SELECT id FROM image ORDER BY revision DESC LIMIT :count")
    return list(connection.execute(rows, {"count": count}).scalars())


FILLED = (tables.image, tables.judgement, derived_tables.current_rating, derived_tables.score)
"""Tables whose sizes tell that a database was filled."""
