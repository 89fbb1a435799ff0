"""Who may talk to our routes, and how a body has to look before anybody reads it.

ComfyUI has no login: whoever reaches the port may rate. A web page in the user's browser reaches it too, so a foreign
Origin is refused, and so is a Host that a rebound DNS name would carry.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ..feedback.media import content_hash
from ..feedback.records import RequestKey

ALLOWED_HOSTS = "FEEDBACK_LOOP_ALLOWED_HOSTS"
MAX_BODY = 512 * 2**10  # bytes; the longest comment takes 400 kB
BODY_SECONDS = 30
MAX_KEY = 255
HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\[\]@:/\s]+))(:\d{1,5})?")


class Refused(Exception):
    """A request that is not answered as asked; `status` is HTTP's, the message a sentence for whoever sent it."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def check_sender(request: web.Request) -> None:
    """Raises Refused for a Host that is not this machine's and for an Origin that is not ours.

    A request without an Origin comes from a script or from the address bar, and is allowed.
    """
    host = request.headers.get("Host", "")
    if not _is_ours(_hostname(host)):
        raise Refused(403, f"The host {host[:200]!r} is not known; add it to {ALLOWED_HOSTS} if it is yours.")
    origin = request.headers.get("Origin")
    if origin is not None and not _same_place(origin, host):
        raise Refused(
            403, f"Pages of {origin[:200]!r} may not do this; add its host to {ALLOWED_HOSTS} if it is yours."
        )


def _same_place(origin: str, host: str) -> bool:
    """Whether a page of `origin` was served from `host`, or from a host that the user allows."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https"):
        return False  # "null", which sandboxed frames and local files send, and extensions
    return parts.netloc.lower() == host.lower() or _hostname(parts.netloc) in _allowed()


def _hostname(host: str) -> str:
    """The name or address in a Host header, "" for one that is malformed."""
    found = HOST.fullmatch(host.lower())
    return (found["address"] or found["name"]).rstrip(".") if found else ""


def _is_ours(name: str) -> bool:
    """An address can't be rebound, only a name can."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", *_own_names()) or name.endswith(".localhost") or name in _allowed()
    return True


@cache
def _own_names() -> tuple[str, str]:
    name = platform.node().lower()
    return name, f"{name}.local"


def _allowed() -> set[str]:
    names = os.environ.get(ALLOWED_HOSTS, "").lower().split(",")
    return {_hostname(name.strip()) for name in names} - {""}


async def json_body(request: web.Request) -> dict[str, Any]:
    """The JSON object that was sent. Raises Refused for another type, too many bytes, and what is no clean JSON."""
    if request.content_type != "application/json":
        raise Refused(415, "Send JSON with the header Content-Type: application/json.")
    if (request.content_length or 0) > MAX_BODY:
        raise Refused(413, f"The body is too large; at most {MAX_BODY} bytes are read.")
    try:
        data = await asyncio.wait_for(_read(request), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise Refused(408, f"The body did not arrive within {BODY_SECONDS} seconds.") from error
    try:
        sent = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no valid JSON: {str(error)[:200]}.") from error
    if not isinstance(sent, dict):
        raise Refused(400, "The body must be a JSON object.")
    return sent


async def _read(request: web.Request) -> bytes:
    data = b""
    async for chunk in request.content.iter_chunked(64 * 2**10):
        data += chunk
        if len(data) > MAX_BODY:
            raise Refused(413, f"The body is too large; at most {MAX_BODY} bytes are read.")
    return data


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def request_key(request: web.Request, body: str) -> RequestKey | None:
    """The Idempotency-Key with a hash of what it stands for, or None. Raises Refused for one that is no plain text."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise Refused(400, f"An Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters.")
    route = request.path.removeprefix("/api")
    return RequestKey(key, content_hash(f"{request.method} {route}\n{body}".encode()))
