"""Injected rules: a condition on the clean estimate while sampling, and what happens to a picture that meets it.

Every choice is a word of a fixed list; there are no expressions. A rule looks at each picture of a batch by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Compare = Literal["below", "above"]
Action = Literal["boost guidance", "step back", "switch conditioning", "stop"]

COMPARE: tuple[Compare, ...] = get_args(Compare)
ACTIONS: tuple[Action, ...] = get_args(Action)

MOST_BOOST = 10.0
"""What boosts multiply guidance by at most, all together: as far as the strength of Reward guidance goes."""

PAST = {
    "boost guidance": "guidance boosted",
    "step back": "stepped back",
    "switch conditioning": "switched conditioning",
    "stop": "stopped",
}


@dataclass(frozen=True)
class Rule:
    """When a picture's reward is `compare` `threshold` between the shares `start` and `end` of a run: `action`.

    amount: what guidance is multiplied by (boost guidance); how many steps back (step back). times: how often it may
    fire for one picture. name: of the reward, for what is told.
    """

    compare: Compare
    threshold: float
    action: Action
    amount: float = 2.0
    start: float = 0.0
    end: float = 1.0
    times: int = 1
    name: str = "reward"

    def meets(self, scores: Tensor, percent: float) -> Tensor:
        """scores (B,) -> bool (B,)."""
        if not self.start <= percent <= self.end:
            return torch.zeros_like(scores, dtype=torch.bool)
        return scores < self.threshold if self.compare == "below" else scores > self.threshold

    def told(self, score: float, percent: float) -> str:
        """What happened, for people: short enough for a tag."""
        return f"{PAST[self.action]} at {percent:.0%}: {self.name} {score:.3g} {self.compare} {self.threshold:.3g}"


@dataclass(frozen=True)
class Fired:
    """A rule that fired for the picture with this place in the batch."""

    rule: int
    picture: int
    text: str


@dataclass
class Course:
    """What the rules have done to the pictures of one run so far; every tensor is (B,). running: whose pictures come
    out of the pass that is going on: not those that were sent back, nor, when others run again, those that were not."""

    count: int
    rules: Sequence[Rule]
    fired: list[Fired] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.factor = torch.ones(self.count)
        self.switched = torch.full((self.count,), -1)
        self.stopped = torch.zeros(self.count, dtype=torch.bool)
        self.running = torch.ones(self.count, dtype=torch.bool)
        self.backwards: dict[int, int] = {}
        self._times: dict[tuple[int, int], int] = {}

    def look(self, rule: int, scores: Tensor, percent: float) -> list[int]:
        """Applies one rule to what its reward says now, scores (B,) on the CPU; the pictures for which it fires."""
        one = self.rules[rule]
        met = one.meets(scores, percent) & self.running & ~self.stopped
        places = [int(i) for i in met.nonzero() if self._times.get((rule, int(i)), 0) < one.times]
        for place in places:
            self._times[rule, place] = self._times.get((rule, place), 0) + 1
            self.fired.append(Fired(rule, place, one.told(float(scores[place]), percent)))
            self._act(rule, place)
        return places

    def _act(self, rule: int, place: int) -> None:
        one = self.rules[rule]
        if one.action == "boost guidance":
            self.factor[place] = min(float(self.factor[place]) * one.amount, MOST_BOOST)
        elif one.action == "switch conditioning":
            self.switched[place] = rule
        elif one.action == "stop":
            self.stopped[place] = True
        else:
            self.backwards[place] = max(1, round(one.amount))
            self.running[place] = False

    def texts(self) -> Mapping[int, list[str]]:
        """What happened to each picture, in order."""
        found: dict[int, list[str]] = {}
        for one in self.fired:
            found.setdefault(one.picture, []).append(one.text)
        return found

    def told(self, rule: int) -> str:
        """What one rule did, a line for each picture that met it, for people."""
        lines = [f"Picture {one.picture + 1}: {one.text}." for one in self.fired if one.rule == rule]
        return "\n".join(lines) or f"None of {self.count} pictures met this rule."


def earlier(index: int, back: int) -> int:
    """The step from which sampling goes on after `back` steps back from step `index`."""
    return max(0, index - back)
