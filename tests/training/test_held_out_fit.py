"""What the fits to held-out ratings see: a model that leaves what was liked, and one that gets worse at everything."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.training.alarm import Measured, over_optimised
from feedback_loop.training.sources import Example, ForwardSource
from feedback_loop.training.validation import LikedFit, RatingFit

from .small import Policy
from .test_learning import PROCESS, ideal

REWARDS = [Measured(float(epoch), 0.1) for epoch in range(3)]


def disturbed(policy: Policy, by: float) -> None:
    """Random weights in the adapter: the estimates of the ideal denoiser become worse at any picture alike."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(by * torch.randn(weight.shape, generator=generator))


def series(by: float) -> dict[str, list[Measured]]:
    """At noise level 1, both fits to 64 rated points of the untouched model, then of one that is disturbed."""
    policy, generator = ideal(), torch.Generator().manual_seed(3)
    points = torch.randn(64, 1, 1, 2, generator=generator)
    examples = [Example(x, "p", label) for x, label in zip(points, [1.0, -1.0] * 32, strict=True)]
    source = ForwardSource(examples, {"p": 1.0, "": 0.0}, PROCESS, torch.ones_like, 32, 0)
    fits = {"ratings": RatingFit(policy, source), "liked": LikedFit(policy, source)}
    found: dict[str, list[Measured]] = {name: [] for name in fits}
    for step in range(3):
        if step == 1:  # twice: the effect of an adapter is the product of its halves
            disturbed(policy, by)
            disturbed(policy, by)
        for name, fit in fits.items():
            one = Measured.of(fit())
            found[name].append(Measured(one.mean, max(one.error, fit.least_error)))
    return found


def test_a_fall_that_is_the_same_for_all_pictures_rings_by_what_was_liked_alone() -> None:
    """The labels add up to 0, so that an error which rises everywhere alike leaves their fit near 0; beside the base
    model's error on the liked half it is plain."""
    found = series(0.2)
    assert found["ratings"][0].mean == found["liked"][0].mean == 0
    assert over_optimised(REWARDS, {"ratings": found["ratings"]}) == ""
    assert "while liked fell" in over_optimised(REWARDS, {"liked": found["liked"]})


@pytest.mark.parametrize("by", [0.0, 0.02])
def test_a_change_too_small_to_matter_is_no_fall(by: float) -> None:
    """Looked at under the same noise each time, a change of a thousandth would be a sure one."""
    found = series(by)
    assert abs(found["liked"][2].mean) < 0.01
    assert over_optimised(REWARDS, {"liked": found["liked"]}) == ""
