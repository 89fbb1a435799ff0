"""Workflows and API prompts as they are kept: canonical JSON without secrets, compressed, named by their content."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator
from typing import Any

from .media import content_hash

REDACTED = "[redacted]"
MAX_DOCUMENT = 32 * 2**20  # bytes of JSON

_SECRET_NAME = re.compile(
    r"(?i)(api[_-]?key|apikey|secret|password|passwd|credentials?|authorization|bearer|(^|[_-])(token|auth|pat))$"
)
_SECRET_VALUE = re.compile(
    r"\b(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AIza[\w-]{30,}"
    r"|AKIA[A-Z0-9]{12,}|xox[abprs]-[\w-]{10,}|comfyui-[0-9a-f]{32,}|r8_[A-Za-z0-9]{20,}|Bearer\s+[\w.~+/-]{16,}=*"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)


class DocumentTooLarge(ValueError):
    """A workflow larger than any real one."""


def redacted(graph: Any, also: frozenset[str] = frozenset()) -> Any:
    """A copy of the JSON value without the keys and passwords that nodes of other packs carry in their inputs.

    A text is taken out if its name says so, if it looks like a key of a known service, or if it is in `also`: widget
    values in a workflow have no names, so those that the API prompt named are passed on.
    """
    if isinstance(graph, dict):
        return {k: REDACTED if _is_secret(k, v) else redacted(v, also) for k, v in graph.items()}
    if isinstance(graph, list):
        return [redacted(item, also) for item in graph]
    if isinstance(graph, str):
        return REDACTED if graph in also else _SECRET_VALUE.sub(REDACTED, graph)
    if isinstance(graph, float) and not math.isfinite(graph):
        return None  # ComfyUI marks a node that always runs with NaN, which is no JSON
    return graph


def secrets(graph: Any) -> frozenset[str]:
    """The texts in the JSON value whose names say that they are secret."""
    return frozenset(_secrets(graph))


def _secrets(graph: Any) -> Iterator[str]:
    if isinstance(graph, dict):
        yield from (value for name, value in graph.items() if _is_secret(name, value))
    for item in graph.values() if isinstance(graph, dict) else graph if isinstance(graph, list) else ():
        yield from _secrets(item)


def _is_secret(name: str, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and _SECRET_NAME.search(name) is not None


def packed(graph: dict[str, Any]) -> tuple[str, bytes]:
    """(hash, body) of a JSON object; equal objects give equal hashes. Raises DocumentTooLarge."""
    text = json.dumps(graph, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    if len(text) > MAX_DOCUMENT:
        raise DocumentTooLarge(f"The workflow has {len(text)} bytes as JSON; at most {MAX_DOCUMENT} are kept.")
    return content_hash(text), zlib.compress(text, 6)


def unpacked(body: bytes) -> dict[str, Any]:
    """The JSON object of a stored body."""
    return json.loads(zlib.decompress(body))
