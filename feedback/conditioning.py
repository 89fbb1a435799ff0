"""The words behind a CONDITIONING: back through ControlNets, combinations and text encoders of any name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .graph import MAX_DEPTH, Graph, Link

TEXTS = (
    "text",
    "prompt",
    "positive_prompt",
    "populated_text",
    "user_prompt",
    "text_g",
    "text_l",
    "clip_g",
    "clip_l",
    "t5xxl",
    "llama",
    "bert",
    "mt5xl",
    "qwen25_7b",
)
CONDITIONINGS = re.compile(r"(conditioning|cond)(_?\d+|_to|_from|_NEW)?")
SIDES = ("positive", "negative")
FIRST_SIDE = {"LTXVReferenceAudio": 1, "WanInfiniteTalkToVideo": 1}  # slot of the positive output, where not 0
NAMED_SIDES = {("Efficient Loader", 1): "positive", ("Efficient Loader", 2): "negative"}


def joined(texts: Sequence[str | None]) -> str | None:
    """The different texts line by line; None if one of them, or all, are not known."""
    known = [text for text in texts if text is not None]
    if not known or len(known) < len(texts):
        return None
    return "\n".join(dict.fromkeys(text for text in known if text))


def prompt_of(graph: Graph, link: Link | None, depth: int = 0) -> str | None:
    """The text that the conditioning at `link` was encoded from, or None. Several conditionings give several lines."""
    if link is None or depth > MAX_DEPTH or graph.kind(link.node) == "ConditioningZeroOut":
        return None
    if (side := NAMED_SIDES.get((graph.kind(link.node), link.slot))) is not None:
        return graph.text(link.node, side)
    if (further := _sources(graph, link)) is not None:
        return joined([prompt_of(graph, graph.link(link.node, name), depth + 1) for name in further])
    return _encoded(graph, link)


def _sources(graph: Graph, link: Link) -> list[str] | None:
    """The inputs whose conditioning comes out at `link`; None if the node takes none."""
    links = graph.links(link.node)
    paired = [name for name in links if name.startswith(SIDES)]
    if paired:
        side = _side(graph, link)
        return [name for name in paired if side is not None and name.startswith(side)]
    single = [name for name in links if CONDITIONINGS.fullmatch(name)]
    if graph.kind(link.node) == "ConditioningAverage":
        weight = graph.number(link.node, "conditioning_to_strength")
        only = {1.0: "conditioning_to", 0.0: "conditioning_from"}.get(-1.0 if weight is None else weight)
        return [only] if only else single
    return single or None


def _side(graph: Graph, link: Link) -> str | None:
    """Nodes that take a positive and a negative hand them out in this order."""
    slot = link.slot - FIRST_SIDE.get(graph.kind(link.node), 0)
    return SIDES[slot] if 0 <= slot < len(SIDES) else None


def _encoded(graph: Graph, link: Link) -> str | None:
    inputs = graph.inputs(link.node)
    if "negative_prompt" in inputs and link.slot == 1:
        return graph.text(link.node, "negative_prompt")
    return _agreed(graph.text(link.node, name) for name in TEXTS if name in inputs)


def _agreed(texts: Iterable[str | None]) -> str | None:
    """Encoders with several text boxes: what is written in them, each text once."""
    return joined(list(texts))
