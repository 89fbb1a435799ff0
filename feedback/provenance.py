"""How a picture was made, read from the graph that ran."""

from __future__ import annotations

from typing import Any

from .records import Provenance


def upstream(api_prompt: dict[str, Any], node_id: str) -> dict[str, Any]:
    """The part of the graph that the node depends on, the node included."""
    needed: dict[str, Any] = {}
    waiting = [node_id]
    while waiting:
        if (name := waiting.pop()) in needed or name not in api_prompt:
            continue
        needed[name] = {k: api_prompt[name].get(k) for k in ("class_type", "inputs")}
        links = (needed[name]["inputs"] or {}).values()
        waiting += [link[0] for link in links if isinstance(link, list) and len(link) == 2 and isinstance(link[0], str)]
    return needed


def read(api_prompt: dict[str, Any], workflow: dict[str, Any] | None, node_id: str) -> Provenance:
    return Provenance()
