"""An evaluation in plain words, and as JSON for scripts."""

from __future__ import annotations

import json
import math
from typing import Any

from ..feedback.blind import Tally
from ..feedback.evaluation import FEW_PROMPTS, Interval
from .evaluating import DIVERSITY, Comparison, Evaluation

FEW_PAIRS = 20
UNITS = "in standard deviations of A"


def report_of(found: Evaluation, waiting: str = "") -> str:
    """The result, a line for each point; the alarm comes first. waiting: where people are asked, as a collection."""
    lines = [found.alarm, *verdict(found.result).split("\n")]
    lines += [told(name, one) for name, one in found.watched.items() if name != DIVERSITY]
    lines += people(found.votes, waiting)
    if found.gap is not None:
        lines.append(
            f"Distance of B's predictions from A's (the KL of training): {found.gap.value:.3g}{within(found.gap)}."
        )
    lines.append(drifted(found.drift))
    return "\n".join([line for line in (*lines, *found.notes) if line])


def verdict(result: Comparison) -> str:
    """What the judge says, a line for each point."""
    win, gain = result.win_rate, result.gain
    lines = [f"B wins {win.value:.0%} of {result.pairs} pairs (95 % interval {win.low:.0%} to {win.high:.0%})."]
    if win.low <= 0.5 <= win.high:
        lines.append("The interval includes 50 %: this does not show a difference between the models. " + more(result))
    else:
        lines.append(f"The interval is {'above' if win.low > 0.5 else 'below'} 50 %.")
    known = math.isfinite(gain.low) and math.isfinite(gain.high)
    bounds = f"95 % interval {gain.low:+.4g} to {gain.high:+.4g}" if known else "one pair gives no interval"
    means = f"Mean reward {result.reward_a:.4g} for A and {result.reward_b:.4g} for B"
    lines.append(f"{means}: a difference of {gain.value:+.4g} ({bounds}).")
    if result.diversity_a > 0:
        share = result.diversity_b / result.diversity_a
        lines.append(
            f"Diversity {result.diversity_a:.4g} for A and {result.diversity_b:.4g} for B ({share:.0%} of A's)."
        )
    return "\n".join(lines + cautions(result))


def more(result: Comparison) -> str:
    """How many pairs would tell, if the rate stayed as it is: the interval shrinks with the root of their number."""
    win = result.win_rate
    off, reach = abs(win.value - 0.5), (win.high - win.low) / 2
    if off < 0.01:
        return "The models look alike to this judge."
    needed = max(math.ceil(result.pairs * (reach / off) ** 2), result.pairs + 1)
    return f"About {needed} pairs would settle a rate like this one."


def cautions(result: Comparison) -> list[str]:
    """What keeps the numbers from saying more."""
    said = []
    if result.pairs < FEW_PAIRS:
        said.append(f"{result.pairs} pairs are few: use more prompts or seeds before you rely on this.")
    if result.prompts < FEW_PROMPTS:
        said.append(
            f"The intervals are about these prompts alone; with {FEW_PROMPTS} or more they speak for others like them."
        )
    return said


def told(name: str, one: Any) -> str:
    """A watched number, with whether it moved."""
    rate = "" if one.win_rate is None else f" B wins {one.win_rate.value:.0%}{within(one.win_rate, '.0%')}."
    return (
        f"{name.capitalize()}: {one.a:.4g} for A, {one.b:.4g} for B, {one.change.value:+.3g}{within(one.change)}.{rate}"
    )


def people(votes: Tally | None, waiting: str) -> list[str]:
    """What people said so far, and where they can say more."""
    if votes is None:
        return []
    open_ = votes.pairs - votes.answered
    where = (
        f"{open_} of {votes.pairs} blind pairs wait for an answer: choose the collection '{waiting}' and Compare in "
    )
    left = [where + "the sidebar, then run this node again."] if open_ else []
    if votes.alike:
        left.append(f"{votes.alike} pairs are the same to the pixel and were not asked about.")
    if not votes.votes:
        return left
    who = f"{votes.raters} {'person' if votes.raters == 1 else 'people'}"
    said = f"In {votes.votes} blind votes of {who}, B wins {votes.win_rate.value:.0%}{within(votes.win_rate, '.0%')}."
    return [said, *left]


def within(interval: Interval, form: str = ".3g") -> str:
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return " (too few for an interval)"
    return f" (95 % interval {interval.low:{form}} to {interval.high:{form}})"


def drifted(drift: dict[str, Interval]) -> str:
    """The statistics that moved beyond their interval."""
    moved = [
        f"{name} {one.value:+.2g}{within(one, '+.2g')}"
        for name, one in drift.items()
        if math.isfinite(one.value) and not one.low <= 0 <= one.high
    ]
    return (
        f"Drift of the pictures, {UNITS}: {', '.join(moved)}."
        if moved
        else "No drift of the pictures' statistics is seen."
    )


def figures(found: Evaluation) -> str:
    """Every number, and every pair by itself, as JSON for scripts; what is not known is null."""
    drawn, (a, b) = found.drawn, found.rewards
    each = zip(drawn.rows, drawn.seeds, a, b, strict=True)
    pairs = [{"prompt": row, "seed": seed, "reward_a": x, "reward_b": y} for row, seed, x, y in each]
    numbers = {name: _plain(number) for name, number in vars(found.result).items()}
    more_ = {
        "watched": {name: {k: _plain(v) for k, v in vars(one).items()} for name, one in found.watched.items()},
        "drift": {name: _plain(one) for name, one in found.drift.items()},
        "kl": _plain(found.gap),
        "people": None if found.votes is None else {k: _plain(v) for k, v in vars(found.votes).items()},
        "alarm": found.alarm,
        "notes": list(found.notes),
    }
    return json.dumps({"judge": found.judge, **numbers, **more_, "each": pairs}, indent=1, allow_nan=False)


def _plain(number: float | Interval | None) -> Any:
    if isinstance(number, Interval):
        return {name: _plain(part) for name, part in number._asdict().items()}
    return number if number is not None and math.isfinite(number) else None
