"""Who sends a request, and how often: team mode and rate limits.

Alone, anybody who reaches the port is believed to be the rater that they name. With FEEDBACK_LOOP_TEAM=1 every request
carries a token of one rater, and that rater is who judges; what others said can be deleted only by the keepers that
FEEDBACK_LOOP_KEEPERS names. Pictures themselves are the exception, because an <img>
sends no header: their random ids, which only members are told, take the token's place.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..feedback.media import content_hash
from .request_rules import Refused

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

TEAM = "FEEDBACK_LOOP_TEAM"
KEEPERS = "FEEDBACK_LOOP_KEEPERS"
RATER: Any = getattr(web, "RequestKey", lambda name, _: name)("feedback_loop_rater", str)  # older aiohttp takes text
SENDERS = 10_000  # remembered at once; more than that, and those longest unseen are forgotten
MAX_TOKEN = 200  # characters
ASK = "Whoever runs this ComfyUI makes tokens."
CHALLENGE = {"WWW-Authenticate": "Bearer"}
OPEN = ("/file", "/thumbnail", "/openapi.json")  # ends of paths that need no token


@dataclass(frozen=True)
class Limit:
    """So many requests at once, and so many a second after that."""

    burst: float
    per_second: float


READS = Limit(5000, 500)
WRITES = Limit(2000, 200)
HEAVY = Limit(10, 1 / 6)
"""Backups, scans and the like, which take the disk for seconds."""

KEPT = ("/prune", "/backup", "/settings", "/use", "/drop")  # besides the deletion of pictures
HEAVY_PATHS = ("/backup", "/prune", "/history/scan", "/import", "/export")


class Rates:
    """Token buckets by sender: each request takes one token, and they come back with time."""

    def __init__(self, limit: Limit, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # sender -> (tokens, when), longest unseen first

    def take(self, sender: str) -> float:
        """Takes a token and returns 0, or takes none and returns the seconds until there is one."""
        now = self._clock()
        tokens, since = self._left.pop(sender, (self._limit.burst, now))
        tokens = min(self._limit.burst, tokens + (now - since) * self._limit.per_second)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._limit.per_second
        self._left[sender] = (tokens if wait else tokens - 1, now)
        if len(self._left) > SENDERS:
            del self._left[next(iter(self._left))]
        return wait


class Door:
    """Lets a request in, or raises Refused: 401 without a token that is known, 429 when it comes too often."""

    def __init__(self, store: Callable[[], FeedbackStore], threads: Executor, team: bool | None = None) -> None:
        self._store = store
        self._threads = threads
        self.team = os.environ.get(TEAM, "0") not in ("", "0") if team is None else team
        self._rates = {limit: Rates(limit) for limit in (READS, WRITES, HEAVY)}
        self._known: dict[str, str] = {}  # hash of a token -> rater, as the database said last

    async def admit(self, request: web.Request) -> None:
        """In team mode, `rater_of(request)` knows the sender from here on."""
        address = f"at {request.remote}"
        if self.team and not request.path.endswith(OPEN):
            token = _token(request)
            rater = await asyncio.get_running_loop().run_in_executor(self._threads, self._rater, token)
            if rater is None:
                self._take(WRITES, address)
                raise Refused(401, f"This token is not known, or was withdrawn. {ASK}", CHALLENGE)
            request[RATER] = rater
            _check_keeper(request, rater)
        self._take(_limit_of(request), rater_of(request) or address)

    def _take(self, limit: Limit, sender: str) -> None:
        if wait := self._rates[limit].take(sender):
            seconds = math.ceil(wait)
            message = f"These requests come too fast. Wait {seconds} s, then go on more slowly."
            raise Refused(429, message, {"Retry-After": str(seconds)})

    def _rater(self, token: str) -> str | None:
        """Whose token it is; while a database server is away, whose it was when it was last asked about."""
        from ..feedback.engines import DatabaseUnreachable

        hash_ = content_hash(token.encode())
        try:
            rater = self._store().rater_of_token(token)
        except DatabaseUnreachable:
            if (known := self._known.get(hash_)) is None:
                raise
            return known
        if rater is None:
            self._known.pop(hash_, None)
        elif len(self._known) < SENDERS:
            self._known[hash_] = rater
        return rater


DOOR: web.AppKey[Door] = web.AppKey("feedback_loop_door", Door)


def _limit_of(request: web.Request) -> Limit:
    if request.path.endswith(HEAVY_PATHS):
        return HEAVY
    return READS if request.method in ("GET", "HEAD") else WRITES


def _check_keeper(request: web.Request, rater: str) -> None:
    """Raises Refused where a member would delete, or decide for everybody, without being a keeper."""
    deletes = request.method == "DELETE" and "/images/" in request.path
    decides = request.method != "GET" and request.path.endswith(KEPT)
    keepers = {name.strip() for name in os.environ.get(KEEPERS, "").split(",")}
    if (deletes or decides) and rater not in keepers:
        raise Refused(403, f"In a team only keepers may do this. Whoever runs this ComfyUI names them in {KEEPERS}.")


def _token(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN or not token.isascii():
        message = "This ComfyUI is shared by a team: send your token in the header Authorization: Bearer TOKEN."
        raise Refused(401, f"{message} {ASK}", CHALLENGE)
    return token


def rater_of(request: web.Request) -> str | None:
    """The rater whose token came with the request; None outside team mode, where anybody may say who they are."""
    return request.get(RATER)


def check_rater(request: web.Request, sent: Any) -> None:
    """Raises Refused where a member speaks as somebody else."""
    known, said = rater_of(request), getattr(sent, "rater", None)
    if known is not None and said not in (None, known):
        raise Refused(403, f"Your token is that of {known!r}; you can't judge as {said[:200]!r}.")
