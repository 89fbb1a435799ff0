"""Words of prompts, to find pictures by: split here, so that both databases find the same, and indexed by each.

SQLite keeps them in a full-text table, PostgreSQL in a TSVECTOR with a GIN index; the row's id is the revision of the
picture, so that the newest come first without sorting. SQLite would put all pictures together that have any word with a
beginning before it gives the first, so there the words themselves are listed too, and asked for one by one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, bindparam, column, literal, select, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Select

# Letters and digits; what is written without blanks between words counts by the character.
WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff]|[^\W_\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff]+")
MAX_LETTERS = 100  # of a word; PostgreSQL takes 2 kB
MAX_WORDS = 4000  # of a prompt
ONE_BY_ONE = 100  # words with one beginning that are asked for one by one
MANY = 20_000  # words with one beginning that are too many to be put together, and so many that each page has some
VOCABULARY = "prompt_text_words"

prompt_text = Table("prompt_text", MetaData(), Column("rowid", BigInteger, primary_key=True))
"""As far as both databases agree on it; not part of the schema that is compared."""


def words(prompt: str) -> list[str]:
    """The words of a prompt in small letters, each once."""
    found = dict.fromkeys(word[:MAX_LETTERS] for word in WORD.findall(prompt.casefold()))
    return list(found)[:MAX_WORDS]


def insert_words(connection: Connection, rows: Sequence[tuple[int, str | None]]) -> None:
    """Indexes prompts by the revision of their picture."""
    found = [(revision, words(prompt)) for revision, prompt in rows if prompt]
    if connection.dialect.name == "sqlite":
        statement = text("INSERT INTO prompt_text (rowid, words) VALUES (:revision, :words)")
        values = [{"revision": revision, "words": " ".join(some)} for revision, some in found if some]
    else:
        statement = text("INSERT INTO prompt_text (rowid, words) VALUES (:revision, array_to_tsvector(:words))")
        values = [{"revision": revision, "words": some} for revision, some in found if some]
    if not values:
        return
    connection.execute(statement, values)
    if connection.dialect.name == "sqlite":
        known = [{"word": word} for word in dict.fromkeys(word for _, some in found for word in some)]
        connection.execute(text(f"INSERT OR IGNORE INTO {VOCABULARY} VALUES (:word)"), known)


def begin_anew(connection: Connection) -> None:
    """Forgets all prompts."""
    connection.execute(text("DELETE FROM prompt_text"))
    if connection.dialect.name == "sqlite":
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS {VOCABULARY} (word TEXT PRIMARY KEY) WITHOUT ROWID"))
        connection.execute(text(f"DELETE FROM {VOCABULARY}"))  # a constant of ours # nosec B608


def remove_words(connection: Connection, revision: int) -> None:
    """Forgets the prompt of a picture."""
    connection.execute(text("DELETE FROM prompt_text WHERE rowid = :revision"), {"revision": revision})


def with_words(connection: Connection, asked: str) -> tuple[Select[tuple[int]], bool] | None:
    """Revisions of the pictures whose prompts have words that begin with all the words asked; None if none is asked.

    And whether all of them can be found first; else they are quickly met by looking at one prompt after the other.
    """
    if not (beginnings := words(asked)):
        return None
    revisions = select(prompt_text.c.rowid)
    if connection.dialect.name == "sqlite":
        return _in_sqlite(connection, revisions, beginnings)
    query = " & ".join(f"'{word}':*" for word in beginnings)
    matches = column("words").op("@@")(text("to_tsquery('simple', :query)").bindparams(query=query))
    return revisions.where(matches), True


def _in_sqlite(
    connection: Connection, revisions: Select[tuple[int]], beginnings: Sequence[str]
) -> tuple[Select[tuple[int]], bool]:
    if all(_has_many(connection, beginning) for beginning in beginnings):
        prompt = literal(" ") + column("words", Text)
        return revisions.where(*[prompt.like(f"% {beginning}%") for beginning in beginnings]), False
    query = " AND ".join(_any_of(connection, beginning) for beginning in beginnings)
    return revisions.where(column("prompt_text").op("MATCH")(bindparam(None, query))), True


KNOWN = f"SELECT word FROM {VOCABULARY} WHERE word >= :first AND word < :last LIMIT"  # constants of ours # nosec B608


def _has_many(connection: Connection, beginning: str) -> bool:
    between = {"first": beginning, "last": f"{beginning}\U0010ffff"}
    return connection.execute(text(f"{KNOWN} 1 OFFSET {MANY}"), between).first() is not None


def _any_of(connection: Connection, beginning: str) -> str:
    """The part of a full-text query for the words with a beginning. A word that no prompt has finds nothing."""
    between = {"first": beginning, "last": f"{beginning}\U0010ffff"}
    known = list(connection.execute(text(f"{KNOWN} {ONE_BY_ONE + 1}"), between).scalars()) or [beginning]
    if len(known) > ONE_BY_ONE:
        return f'"{beginning}" *'
    return "(" + " OR ".join(f'"{word}"' for word in known) + ")"
