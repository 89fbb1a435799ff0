"""The graph that ran, in ComfyUI's API format: `{id: {"class_type": ..., "inputs": {name: value or [id, slot]}}}`.

Subgraphs are flattened there, with ids such as "12:3". Types of sockets are not in it, so names have to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .records import MAX_TEXT

MAX_DEPTH = 100  # links in a row; what lies deeper counts as not found
MAX_JOINS = 40  # texts joined from joined texts, likewise

# Nodes that hand out a constant, and the input that holds it.
CONSTANTS = {
    "PrimitiveNode": "value",
    "PrimitiveString": "value",
    "PrimitiveStringMultiline": "value",
    "PrimitiveInt": "value",
    "PrimitiveFloat": "value",
    "PrimitiveBoolean": "value",
    "INTConstant": "value",
    "FloatConstant": "value",
    "StringConstant": "string",
    "String Literal": "string",
    "Int Literal": "int",
    "Float Literal": "float",
    "Seed (rgthree)": "seed",
    "Seed": "seed",
    "CR Seed": "seed",
    "CR Text": "text",
    "CR Prompt Text": "prompt",
    "easy seed": "seed",
    "easy int": "value",
    "easy float": "value",
    "easy string": "value",
    "easy positive": "positive",
    "easy negative": "negative",
    "ttN seed": "seed",
    "ttN int": "int",
    "ttN float": "float",
    "ttN text": "text",
    "JWInteger": "value",
    "JWFloat": "value",
    "JWString": "text",
}
SHOWN = {"ShowText|pysssss": "text"}  # hand on what they show


@dataclass(frozen=True)
class Link:
    """An output: which node, and which of its slots."""

    node: str
    slot: int


def _link(value: Any) -> Link | None:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
        return Link(*value)
    return None


def upstream(api_prompt: dict[str, Any], node_id: str) -> dict[str, Any]:
    """What the node's pictures depend on: all nodes above it, and its own links, but not its own settings."""
    needed: dict[str, Any] = {}
    waiting = [node_id]
    while waiting:
        if (name := waiting.pop()) in needed or not isinstance(api_prompt.get(name), dict):
            continue
        inputs = api_prompt[name].get("inputs") or {}
        links = {key: value for key, value in inputs.items() if _link(value)}
        kept = links if name == node_id else inputs
        needed[name] = {"class_type": api_prompt[name].get("class_type"), "inputs": kept}
        waiting += [value[0] for value in links.values()]
    return needed


class Graph:
    """Reads values and links, through reroutes, constants, switches and joined texts. Nothing malformed raises."""

    def __init__(self, api_prompt: dict[str, Any]) -> None:
        self._nodes = {key: node for key, node in api_prompt.items() if isinstance(node, dict)}
        self._values: dict[tuple[str, str], Any] = {}  # without it, texts joined from joined texts take 2^n steps
        self._depth = 0

    def kind(self, node: str) -> str:
        """The class of the node, "" if there is no such node."""
        kind = self._nodes.get(node, {}).get("class_type")
        return kind if isinstance(kind, str) else ""

    def inputs(self, node: str) -> dict[str, Any]:
        """The inputs of the node as they stand."""
        inputs = self._nodes.get(node, {}).get("inputs")
        return inputs if isinstance(inputs, dict) else {}

    def links(self, node: str) -> list[str]:
        """Names of the inputs that are connected."""
        return [name for name, value in self.inputs(node).items() if _link(value)]

    def link(self, node: str, name: str) -> Link | None:
        """The output that the input is connected to, past reroutes and switches; None if it is not connected."""
        return self._beyond(_link(self.inputs(node).get(name)))

    def _beyond(self, link: Link | None) -> Link | None:
        for _ in range(MAX_DEPTH):
            if link is None or link.node not in self._nodes:
                return None
            if (through := self._passes_on(link.node)) is None:
                return link
            link = _link(self.inputs(link.node).get(through))
        return None

    def _passes_on(self, node: str) -> str | None:
        """The input that the node hands on unchanged, None if it does something of its own."""
        kind, links = self.kind(node), self.links(node)
        if "reroute" in kind.lower() and len(links) == 1:
            return links[0]
        if kind in ("ComfySwitchNode", "ComfySoftSwitchNode"):
            switch = self.value(node, "switch")
            return f"on_{str(switch).lower()}" if isinstance(switch, bool) else None
        return SHOWN.get(kind)

    def value(self, node: str, name: str) -> Any:
        """The value of a widget, whether typed in or connected to a constant; None if it is computed or missing."""
        given = self.inputs(node).get(name)
        if not isinstance(given, list):
            return given
        if (node, name) not in self._values:
            self._values[node, name] = None  # what a circle leads back to, and what lies too deep
            if self._depth > MAX_JOINS:
                return None
            self._depth += 1
            self._values[node, name] = self._constant(self._beyond(_link(given)))
            self._depth -= 1
        return self._values[node, name]

    def _constant(self, link: Link | None) -> Any:
        if link is None:
            return None
        kind = self.kind(link.node)
        if kind == "StringConcatenate":
            return self._joined(link.node)
        return self.value(link.node, CONSTANTS[kind]) if kind in CONSTANTS else None

    def _joined(self, node: str) -> str | None:
        parts = [self.value(node, name) for name in ("string_a", "delimiter", "string_b")]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == 3 and sum(map(len, texts)) <= MAX_TEXT else None

    def text(self, node: str, *names: str) -> str | None:
        """The first of these inputs that holds a text."""
        found = (self.value(node, name) for name in names)
        return next((value for value in found if isinstance(value, str)), None)

    def number(self, node: str, *names: str) -> float | None:
        """The first of these inputs that holds a finite number."""
        found = (self.value(node, name) for name in names)
        numbers = (value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool))
        return next((float(value) for value in numbers if abs(value) < 1e300), None)

    def whole(self, node: str, *names: str) -> int | None:
        """The first of these inputs that holds a whole number, with all its digits."""
        found = (self.value(node, name) for name in names)
        numbers = (value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool))
        return next((int(value) for value in numbers if abs(value) < 1e300 and value == int(value)), None)
