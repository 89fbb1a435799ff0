"""What a steered run is seen to do, step by step, and a clear word when that is nothing or too much.

Rewards can be outwitted: a score climbs while the pictures get worse. Three things show it without knowing what is in
the picture: colours or detail beyond what the same model makes unsteered, and a second reward that falls where the
first is pushed up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..feedback.rewards.colour import saturation, sharpness

QUIET = 0.1
"""A step whose reward could change by less than this share of what counts as a change does nothing."""

MOST = 0.8
"""The share of steps from which on the whole run is said to be so."""

BEYOND = 0.25
"""The share of pictures outside the plain range from which on steering is said to be too much."""

LONG = 0.7
"""Steps of so many standard deviations of x0 given x, over the reward's reach, leave what the model holds to be likely;
strength 1 makes steps of .6 at most. On the demo model a learned taste costs seven points of the prompted attributes at
.6 and ten at .9; a penalty, which lets go where it is satisfied, two points even at 1."""

WIDE = {"saturation": (-0.01, 0.75), "detail": (-3.0, -0.45)}
"""Without plain pictures: what next to no photograph or drawing reaches; see `statistics` for the units."""


@dataclass(frozen=True)
class Look:
    """One steered step of a batch. share: of the run, 0 its beginning and 1 its end. All others (B,): reward at the
    estimate; room: how much one standard deviation of x0 given x could change the reward, as a share of what counts as
    a change; stride: the step made, in those deviations, over the reward's reach."""

    share: float
    reward: Tensor
    room: Tensor
    stride: Tensor


@dataclass
class Watch:
    """Collects what is seen of one run. plain: statistics of unsteered pictures, each (N,). made: once the run is over,
    statistics of its pictures, each (B,): those of an estimate on the way would be those of something blurred. judged:
    then, a second reward of its pictures (B,) and of the plain ones (N,)."""

    plain: Mapping[str, Tensor] | None = None
    looks: list[Look] = field(default_factory=list)
    made: Mapping[str, Tensor] = field(default_factory=dict)
    judged: tuple[Tensor, Tensor] | None = None

    def see(self, look: Look) -> None:
        self.looks.append(look)

    def problems(self) -> list[str]:
        """What is wrong with the run, in sentences; empty when nothing is."""
        if not self.looks:
            return ["No step was steered: start_percent to end_percent holds none of this run's steps."]
        return [said for said in (self._nothing(), self._far(), self._beyond(), self._betrayed()) if said]

    def _nothing(self) -> str:
        quiet = torch.stack([(look.room < QUIET).float().mean() for look in self.looks]).mean()
        if quiet < MOST:
            return ""
        return (
            "The reward hardly depends on these pictures: guidance did next to nothing. It is satisfied already, or "
            "cannot see what it looks for here."
        )

    def _far(self) -> str:
        stride = float(torch.stack([look.stride.mean() for look in self.looks]).median())
        if stride <= LONG:
            return ""
        return (
            f"The steps were {stride / LONG:.2g} times as long as is safe: they leave what the model holds to be "
            "likely. Lower the strength."
        )

    def _beyond(self) -> str:
        for name, values in self.made.items():
            low, high = self._range(name)
            outside = ((values < low) | (values > high)).float().mean()
            if outside > BEYOND:
                where = "above" if (values > high).sum() >= (values < low).sum() else "below"
                return (
                    f"The {name} of {outside:.0%} of the pictures is {where} what unsteered ones have: the reward is "
                    "being outwitted. Lower the strength, or end earlier."
                )
        return ""

    def _range(self, name: str) -> tuple[float, float]:
        """From the lowest to the highest plain picture, widened by half a standard deviation."""
        if self.plain is None:
            return WIDE[name]
        values = self.plain[name]
        margin = 0.5 * float(values.std(correction=0)) if len(values) > 1 else 0.1
        return float(values.min()) - margin, float(values.max()) + margin

    def _betrayed(self) -> str:
        """Twice the standard error of the difference is more than chance brings about."""
        if self.judged is None:
            return ""
        ours, plain = self.judged
        error = (ours.var(correction=0) / len(ours) + plain.var(correction=0) / len(plain)).sqrt()
        fall = float(plain.mean() - ours.mean())
        if fall <= 2 * float(error):
            return ""
        return (
            f"The second reward is {fall:.2g} lower than that of the plain pictures: what the first gains may be no "
            "improvement. Lower the strength, or end earlier."
        )


def statistics(images: Tensor) -> dict[str, Tensor]:
    """Of pictures (B,3,H,W) in 0..1, each (B,): saturation, the mean of largest less smallest channel; detail, log10 of
    the root mean square of luma's Laplacian."""
    images = images.detach().float()
    return {"saturation": saturation(images).cpu(), "detail": sharpness(images).cpu()}


def curve(looks: Sequence[Look]) -> list[tuple[float, float, float, float]]:
    """(share of the run, lowest, mean, highest reward) at each share that was looked at, in their order.

    There may be several looks at one: samplers of higher order ask twice, particles are many, rules go back.
    """
    seen: dict[float, list[Tensor]] = {}
    for look in looks:
        seen.setdefault(round(look.share, 4), []).append(look.reward)
    rewards = {share: torch.cat(seen[share]) for share in sorted(seen)}
    return [(share, float(all_.min()), float(all_.mean()), float(all_.max())) for share, all_ in rewards.items()]
