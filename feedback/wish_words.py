"""What an English comment asks for: the things that are wanted and those that are not, as captions would name them."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_WISHES = 64


@dataclass(frozen=True)
class Wish:
    """One thing that a comment asks for (`wanted`) or wants less of."""

    text: str
    wanted: bool = True


_NEGATION = r"(?:no|not|without|less|fewer|never|remove|delete|drop|hide|avoid|lose|get rid of|take away|don'?t)"
_START = rf"(?:{_NEGATION}|more|make|add|put|give|show)"
_BREAKS = re.compile(rf"[;,\n!?]+|\.(?!\d)|\bbut\b|\band\s+(?={_START}\b)|\b(?:yet|also)\b", re.IGNORECASE)
_OPENERS = re.compile(
    r"^(?:(?:please|maybe|just|then|and|so|i|we|you|it|this|that|they|there|'?d|would|could|can|should|must|need|needs"
    r"|want|wants|like|love|prefer|to|be|is|are|was|were|have|has|make|made|add|put|give|show|let|draw|paint|keep"
    r"|them|a|an|the|some|any|in|with)(?:\s+|$))+",
    re.IGNORECASE,
)
_DEGREES = re.compile(
    r"^(?:(?:(?:a\s+)?(?:bit|little|lot|touch)|much|slightly|somewhat|rather|really|very|even|more|of)\s+)+",
    re.IGNORECASE,
)
_CLOSERS = re.compile(
    r"(?:^|\s+)(?:please|pls|thanks|thank you|thx|instead|now|this time|next time|if possible|if you can)\s*$",
    re.IGNORECASE,
)
_UNWANTED = re.compile(
    rf"^(?:{_NEGATION}|too)\s+(?:(?:so|too|as|any|the|a|an|much|many|of|show|draw|want|have|use)\s+)*",
    re.IGNORECASE,
)
_LACKING = re.compile(r"^not\s+(?:enough\s+(?P<what>.+)|(?P<how>\S+)\s+enough)$", re.IGNORECASE)
_OF_A_NOUN = re.compile(
    r"^(?P<noun>[\w' -]+?)\s+(?:(?:is|are|was|should\s+be|must\s+be|could\s+be|to\s+be|needs?\s+to\s+be)\s+)?"
    r"(?P<change>(?:(?:not|less|more|much|too|so|a\s+bit|slightly)\s+)*(?P<word>[\w-]+))$",
    re.IGNORECASE,
)
_COMPARED = {
    "brighter": "bright", "darker": "dark", "lighter": "light", "larger": "large", "bigger": "big", "smaller": "small",
    "warmer": "warm", "cooler": "cool", "colder": "cold", "sharper": "sharp", "softer": "soft", "plainer": "plain",
    "busier": "busy", "simpler": "simple", "cleaner": "clean", "closer": "close", "taller": "tall", "shorter": "short",
    "wider": "wide", "thinner": "thin", "thicker": "thick", "older": "old", "younger": "young", "calmer": "calm",
    "happier": "happy", "sadder": "sad", "redder": "red", "greener": "green", "bluer": "blue", "louder": "loud",
    "clearer": "clear", "smoother": "smooth", "rounder": "round", "higher": "high", "lower": "low", "deeper": "deep",
}  # fmt: skip
"""Captions, which text encoders learned from, say bright where a comment says brighter."""


def wishes(comment: str) -> list[Wish]:
    """The things that an English comment asks for, in order, as a caption would name them.

    "less cluttered, no text" -> two unwanted; "make the background brighter" -> "bright background", wanted. What it
    cannot take apart stays as it was written, as something wanted.
    """
    found = [wish for part in _BREAKS.split(comment) if (wish := _wish(part)) is not None]
    return list(dict.fromkeys(found))[:MAX_WISHES]


def _wish(part: str) -> Wish | None:
    text, wanted = " ".join(re.sub(r"(?<=\w)['’]s\b(?=\s+(?:not|too|so)\b)", " is", part).split()), True
    before = None
    while text != before:  # openers, degrees and negations come in any order: "make it a bit less busy"
        before = text
        if (lacking := _LACKING.match(text)) is not None:
            text = lacking["what"] or lacking["how"]
        elif (unwanted := _UNWANTED.match(text)) is not None:
            text, wanted = text[unwanted.end() :], not wanted
        text = _CLOSERS.sub("", _DEGREES.sub("", _OPENERS.sub("", text)))
    text, turned = _noun_last(text)
    words = [_COMPARED.get(word.lower(), word) for word in text.split()]
    if not words or re.fullmatch(rf"{_NEGATION}|too|more|not", " ".join(words), re.IGNORECASE):
        return None
    return Wish(" ".join(words), wanted != turned)


def _noun_last(text: str) -> tuple[str, bool]:
    """ "background too dark" -> "dark background', and whether that is too much of it; others stay as they are."""
    found = _OF_A_NOUN.match(text)
    if found is None:
        return text, False
    noun, change, word = found["noun"], found["change"].lower(), found["word"]
    degree = change != word.lower()
    if not degree and word.lower() not in _COMPARED and not re.search(r"\s(?:is|are|be)\s", text):
        return text, False
    noun = re.sub(r"^(?:the|a|an|its|my)\s+", "", noun, flags=re.IGNORECASE)
    return f"{word} {noun}", bool(re.search(r"\b(?:not|less|too)\b", change))
