"""Versions of a LoRA that is trained again and again: which is in use, what became of each, and the round under way.

All of it is one small JSON file, written whole or not at all. Version 0 is the model without any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..feedback.evaluation import Interval
from ..feedback.locked_files import holding
from .runs import write_whole

FILE = "versions.json"
LARGEST = 64 * 2**20  # bytes; a version takes some thousand
PATIENCE = 10.0  # seconds that a change waits for another to be on disk

Stage = Literal["training", "judging"]
Outcome = Literal["candidate", "promoted", "not promoted", "dropped"]


class VersionsError(RuntimeError):
    """The index can't be read, or what is asked of it can't be; the message says what to do."""


@dataclass(frozen=True)
class Version:
    """A finished LoRA. file: its name in the LoRA folder; digest: of the file; ratings: how many it learned from.

    recipe: how it was trained, as JSON. why: what its outcome came from, in words.
    """

    number: int
    file: str
    digest: str
    made_at: str
    ratings: int
    recipe: Mapping[str, Any]
    outcome: Outcome = "candidate"
    why: str = ""


@dataclass(frozen=True)
class Round:
    """What is under way. feedback: the query it learns from, as JSON; lora: the name that its file gets.

    candidate, rival: versions that are compared; trial: the name of the blind trial between them, and the first seed
    of its pictures, once it is planned.
    """

    feedback: Mapping[str, Any]
    recipe: Mapping[str, Any]
    stage: Stage = "training"
    lora: str = ""
    candidate: int = 0
    rival: int = 0
    trial: str = ""
    first_seed: int = 0


@dataclass(frozen=True)
class Index:
    """before: what was in use earlier, latest last. seen: the store's revision that was learned from last."""

    versions: tuple[Version, ...] = ()
    in_use: int = 0
    before: tuple[int, ...] = ()
    seen: int = 0
    round: Round | None = field(default=None)

    def version(self, number: int) -> Version:
        """Raises VersionsError for one that there is not."""
        for one in self.versions:
            if one.number == number:
                return one
        raise VersionsError(f"There is no version {number}; the latest is {len(self.versions)}.")

    @property
    def back(self) -> int | None:
        """The version that going back leads to."""
        return self.before[-1] if self.before else None


def better(win_rate: Interval, votes: int, needed: int) -> bool | None:
    """Whether the candidate won: its whole interval lies above one half. None while votes are missing."""
    return None if votes < needed else win_rate.low > 0.5


# On disk


def read(folder: Path) -> Index:
    """The index, empty where nothing was trained yet. Raises VersionsError for a damaged one."""
    path = folder / FILE
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        told = json.loads(path.read_text(encoding="utf-8"))
        versions = tuple(Version(**one) for one in told.pop("versions"))
        now = told.pop("round")
        before = tuple(told.pop("before"))
        index = Index(versions, before=before, round=None if now is None else Round(**now), **told)
        return _checked(index)
    except FileNotFoundError:
        return Index()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VersionsError(
            f"The list of versions {path} can't be understood ({error}). Put it back from a backup, or take it away to "
            "begin anew; the LoRA files stay where they are."
        ) from error


def _checked(index: Index) -> Index:
    if [one.number for one in index.versions] != list(range(1, len(index.versions) + 1)):
        raise ValueError("versions are missing")
    known = range(len(index.versions) + 1)
    if any(type(number) is not int or number not in known for number in (index.in_use, *index.before)):
        raise ValueError("a version in use is not in the list")
    return index


def change(folder: Path, made: Callable[[Index], Index]) -> Index:
    """What `made` makes of the index as it is on disk, written; nobody else changes it meanwhile."""
    with holding(folder / "changing.lock", PATIENCE) as free:
        if not free:
            raise VersionsError(f"Another program holds {folder / 'changing.lock'}. Close it and try again.")
        before = read(folder)
        after = made(before)
        if after != before:
            write_whole(folder / FILE, json.dumps(asdict(after), indent=1))
    return after


def working(folder: Path) -> AbstractContextManager[bool]:
    """Held by the one run that trains or judges; whether it is this one."""
    return holding(folder / "working.lock")


# Changes


def begun(index: Index, now: Round) -> Index:
    return replace(index, round=now)


def named(index: Index, lora: str) -> Index:
    """Training has begun, and this is the name that its LoRA gets."""
    return replace(index, round=replace(_of(index), lora=lora))


def trained(index: Index, version: Version, seen: int) -> Index:
    """The round's LoRA is finished and is to be judged; ratings up to the revision `seen` count as learned from."""
    _of(index)
    return _judging(replace(index, versions=(*index.versions, version), seen=seen), version.number)


def again(index: Index) -> Index:
    """The candidate is to be compared anew, with what is in use by now."""
    return _judging(index, _of(index).candidate)


def _judging(index: Index, candidate: int) -> Index:
    now = replace(_of(index), stage="judging", candidate=candidate, rival=index.in_use, trial="", first_seed=0)
    return replace(index, round=now)


def planned(index: Index, trial: str, first_seed: int) -> Index:
    return replace(index, round=replace(_of(index), trial=trial, first_seed=first_seed))


def promoted(index: Index, why: str) -> Index:
    """The candidate comes into use."""
    return _ended(use(index, _of(index).candidate), index, "promoted", why)


def not_promoted(index: Index, why: str) -> Index:
    """What is in use stays in use."""
    return _ended(index, index, "not promoted", why)


def dropped(index: Index, why: str) -> Index:
    """The round ends without an answer; a finished candidate stays in the list."""
    return index if index.round is None else _ended(index, index, "dropped", why)


def _ended(index: Index, before: Index, outcome: Outcome, why: str) -> Index:
    candidate = _of(before).candidate
    versions = [replace(v, outcome=outcome, why=why) if v.number == candidate else v for v in index.versions]
    return replace(index, versions=tuple(versions), round=None)


def use(index: Index, number: int) -> Index:
    """Takes a version into use; the one before can be gone back to, and going back forgets where it came from."""
    if number:
        index.version(number)
    if number == index.in_use:
        return index
    before = index.before[:-1] if number == index.back else (*index.before, index.in_use)
    return replace(index, in_use=number, before=before)


def _of(index: Index) -> Round:
    if index.round is None:
        raise VersionsError("The round that was under way was dropped meanwhile. Run this node again to begin anew.")
    return index.round
