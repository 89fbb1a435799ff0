"""How good a taste is: accuracy on held-out pairs, calibration, what more labels would bring; in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..feedback.evaluation import Interval

WEAK = 0.6  # below this held-out accuracy whoever trains on a reward is warned


@dataclass(frozen=True)
class TasteReport:
    """How good the taste is on prompts that it did not see. Accuracies are shares of pairs that were ranked right.

    bins: of the favoured side of held-out pairs: (mean predicted probability, share that was right, pairs).
    doubled: by how much the accuracy is expected to rise with twice the labels.
    """

    pictures: int
    stars: int
    choices: int
    prompts: int
    held_out: Interval
    held_out_pairs: int
    bins: list[tuple[float, float, int]]
    calibration_error: float
    curve: list[tuple[int, float]]
    doubled: float
    agreement: float | None
    repeats: int
    bound: float | None
    whitening: float
    strength: float
    caution: float
    notes: list[str] = field(default_factory=list)

    @property
    def beats_chance(self) -> bool:
        return self.held_out.low > 0.5

    def warning(self) -> str:
        """Empty for a taste worth optimising."""
        value = self.held_out.value
        if not self.beats_chance:
            return (
                "This taste has not beaten chance on held-out prompts: what it says may be noise. Rate more pictures."
            )
        if value < WEAK:
            return f"This taste ranks only {value:.0%} of held-out pairs right: it is weak. Rate more pictures."
        return ""

    def facts(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self) | {"held_out": list(self.held_out), "warning": self.warning()}


def doubled(curve: Sequence[tuple[int, float]]) -> float:
    """What twice the labels would add, if the accuracy goes on as a - b / sqrt(labels); at least 0."""
    (few, low), (many, high) = curve[0], curve[-1]
    slope = (high - low) / (few**-0.5 - many**-0.5)
    return max(0.0, slope * (many**-0.5 - (2 * many) ** -0.5))


def describe(report: TasteReport) -> str:
    """The report in plain words."""
    held, lines = report.held_out, []
    said = [f"{report.stars} ratings"] * bool(report.stars) + [f"{report.choices} comparisons"] * bool(report.choices)
    lines.append(f"Learned from {' and '.join(said)} of {report.pictures} pictures, {report.prompts} prompts.")
    if report.held_out_pairs:
        lines.append(
            f"On prompts it had not seen it ranked {held.value:.1%} of {report.held_out_pairs} pairs as the rater did "
            f"(95 % interval {held.low:.1%} to {held.high:.1%}; guessing gives 50 %)."
        )
    if report.warning():
        lines.append(report.warning())
    if report.agreement is not None and report.bound is not None:
        lines.append(
            f"The rater gave the same answer to {report.agreement:.0%} of {report.repeats} repeated pairs, so no "
            f"reward can agree with more than {report.bound:.0%} of single answers."
        )
    lines.append(f"Its probabilities are off by {report.calibration_error:.1%} on average.")
    if report.doubled >= 0.01:
        lines.append(f"Twice as many judgements would likely add about {report.doubled:.1%}.")
    elif not report.warning():  # which asks for more of them
        lines.append("More judgements of the same kind will likely add less than one per cent.")
    return "\n".join([*lines, *report.notes])
