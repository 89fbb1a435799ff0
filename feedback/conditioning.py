"""The words behind a CONDITIONING: back through ControlNets, combinations and text encoders of any name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .graph import MAX_DEPTH, Graph, Link

Texts = tuple[str, ...] | None  # None: not known

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


def prompt_of(graph: Graph, *links: Link | None) -> str | None:
    """The texts that these conditionings were encoded from, each once and on a line of its own.

    None if one of them is not known. Texts are gathered as a set and not joined on the way, because conditionings
    combined of combinations would take 2^n steps.
    """
    known: dict[Link, Texts] = {}
    texts = _together(_texts(graph, link, known) for link in links)
    return None if texts is None else "\n".join(texts)


def _together(parts: Iterable[Texts]) -> Texts:
    """All texts but empty ones, each once; None if a part is unknown or there is none."""
    everything = list(parts)
    if not everything or None in everything:
        return None
    return tuple(dict.fromkeys(text for part in everything for text in part or () if text))


def _texts(graph: Graph, link: Link | None, known: dict[Link, Texts]) -> Texts:
    if link is None or (link not in known and len(known) > MAX_DEPTH):
        return None
    if link not in known:
        known[link] = None  # what a circle leads back to
        known[link] = _texts_here(graph, link, known)
    return known[link]


def _texts_here(graph: Graph, link: Link, known: dict[Link, Texts]) -> Texts:
    if graph.kind(link.node) == "ConditioningZeroOut":
        return None
    if (side := NAMED_SIDES.get((graph.kind(link.node), link.slot))) is not None:
        return _one(graph.text(link.node, side))
    if (sources := _sources(graph, link)) is not None:
        return _together([_texts(graph, graph.link(link.node, name), known) for name in sources])
    return _encoded(graph, link)


def _one(text: str | None) -> Texts:
    return None if text is None else (text,)


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


def _encoded(graph: Graph, link: Link) -> Texts:
    """What is written in the boxes of a text encoder; some have one for each of their text models."""
    inputs = graph.inputs(link.node)
    if "negative_prompt" in inputs and link.slot == 1:
        return _one(graph.text(link.node, "negative_prompt"))
    return _together(_one(graph.text(link.node, name)) for name in TEXTS if name in inputs)
