"""Tokens of people in team mode: made once, shown once, and kept only as a hash."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from . import tables
from .checks import NotFound
from .judging import rater_named
from .writes import now

if TYPE_CHECKING:
    from sqlalchemy import Connection

PREFIX = "fbl_"


def new_token() -> str:
    """256 random bits, as text."""
    return PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """What is kept of a token. It is random and long, so a plain hash can't be turned back."""
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def insert_token(connection: Connection, rater: str, token: str) -> str:
    """Lets whoever has the token judge as this rater; returns the id to revoke it by."""
    id_, rater_id = str(uuid.uuid4()), rater_named(connection, rater)
    row = {"rater_id": rater_id, "token_hash": token_hash(token), "created_at": now()}
    connection.execute(insert(tables.api_token).values(id=id_, **row))
    return id_


def revoke_tokens(connection: Connection, rater: str) -> int:
    """Ends all tokens of a rater; returns how many were good until now. Raises NotFound for an unknown rater."""
    rater_id = connection.execute(select(tables.rater.c.id).where(tables.rater.c.name == rater)).scalar()
    if rater_id is None:
        raise NotFound(f"Nobody named {rater!r} is known to the feedback database.")
    token = tables.api_token
    mine = update(token).where(token.c.rater_id == rater_id, token.c.revoked_at.is_(None))
    return connection.execute(mine.values(revoked_at=now())).rowcount


def rater_of_token(connection: Connection, token: str) -> str | None:
    """The name of the rater whose token it is; None if it was never given out or was revoked."""
    known, rater = tables.api_token, tables.rater
    found = (
        select(rater.c.name)
        .join(known, known.c.rater_id == rater.c.id)
        .where(known.c.token_hash == token_hash(token), known.c.revoked_at.is_(None))
    )
    return connection.execute(found).scalar()
