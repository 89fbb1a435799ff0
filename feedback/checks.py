"""What no record may hold, and the errors that say so."""

from __future__ import annotations

import math

MAX_NAME = 200  # characters of a name: rater, axis, collection, file
MAX_TEXT = 100_000  # characters of a prompt or a comment


class InvalidRecord(ValueError):
    """A record holds something that no database may be trusted with; the message says what."""


class NotFound(LookupError):
    """An id that the store does not know."""


class NotYours(PermissionError):
    """A judgement of another rater."""


class Conflict(ValueError):
    """A write that contradicts an earlier one: an idempotency key used before, or the undoing of an undo."""


def checked_text(text: str, name: str, limit: int = MAX_TEXT, empty: bool = True) -> str:
    """Returns `text`, or raises InvalidRecord for NUL, lone surrogates, and text that is too long or empty.

    SQLite cuts text at NUL where PostgreSQL refuses it, and neither holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise InvalidRecord(f"{name} must be text, not {type(text).__name__}.")
    if len(text) > limit:
        raise InvalidRecord(f"{name} is {len(text)} characters long; at most {limit} are kept.")
    if not text and not empty:
        raise InvalidRecord(f"{name} is empty; give it at least one character.")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRecord(f"{name} holds a NUL or half of a surrogate pair; remove it.")
    return text


def checked_number(number: float, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns `number` as float, or raises InvalidRecord unless it is finite and within low..high."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise InvalidRecord(f"{name} must be a number, not {type(number).__name__}.")
    if not math.isfinite(number) or not low <= number <= high:
        raise InvalidRecord(f"{name} is {number}; it must be a finite number from {low:g} to {high:g}.")
    return float(number)
