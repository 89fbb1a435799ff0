"""Batches in parts: losses that look at the whole batch keep its gradient, and checks go smaller as training does."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.training.loop import gradients
from feedback_loop.training.objectives import Objective, Sft
from feedback_loop.training.preferences import Dpo, Kto
from feedback_loop.training.sources import Example, ForwardSource
from feedback_loop.training.validation import RatingFit, Validation

from .small import Policy, progress_of, source


def pairs(count: int, batch: int) -> ForwardSource:
    """`count` pairs of the small world: the first of each is the chosen one."""
    made = source(torch.linspace(1, 2, 2 * count), batch=batch)
    flat = [group[0] for group in made.groups]
    both = [(flat[2 * i], Example(flat[2 * i + 1].latent, "p", -flat[2 * i].label)) for i in range(count)]
    return ForwardSource(both, made.conds, made.process, made.sigma_at, batch, 0)


def pushed(limit: int | None = None) -> Policy:
    policy, generator = Policy(limit=limit), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def likes(batch: int) -> ForwardSource:
    return source(torch.linspace(-1, 2, 20), batch=batch)


WHOLE = [(Dpo(beta=0.0), pairs(10, 7)), (Dpo(beta=0.0, safe=False), pairs(10, 7)), (Kto(40.0), likes(7))]
"""Auto-beta takes the margins of all pairs, KTO counts from the mean gain of all pictures."""


@pytest.mark.parametrize(("objective", "made"), WHOLE, ids=["auto-beta", "auto-beta, not safe", "KTO"])
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_what_looks_at_the_whole_batch_has_the_same_gradient_in_parts(
    objective: Objective, made: ForwardSource, parts: int
) -> None:
    """7 pairs or pictures, in parts that are not equal; with the numbers of each part alone it would be another."""
    policy, batch = pushed(), made.batch_at(0)
    optimizer = torch.optim.SGD(policy.parameters())
    whole, _ = gradients(policy, objective, batch, optimizer)
    expected = torch.cat([p.grad.flatten().clone() for p in policy.parameters() if p.grad is not None])
    in_parts, _ = gradients(policy, objective, batch, optimizer, parts)
    found = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert in_parts == pytest.approx(whole, rel=1e-5)
    assert expected.norm() > 0 and (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize(("objective", "made"), [*WHOLE, (Sft(), likes(7))], ids=["DPO", "not safe", "KTO", "SFT"])
def test_a_check_that_does_not_fit_goes_smaller_and_says_the_same(objective: Objective, made: ForwardSource) -> None:
    """Room for two pictures or one pair at once; later batches begin with as many parts."""
    roomy, tight = pushed(), pushed(limit=2)
    checks = [Validation(p, objective, made, made.examples, progress_of(p).average) for p in (roomy, tight)]
    assert checks[1]() == pytest.approx(checks[0](), rel=1e-5)
    assert checks[1].parts >= 4 and checks[0].parts == 1
    sizes = len(tight.sizes)
    checks[1]()
    assert max(tight.sizes[sizes:]) <= 2


def test_the_fit_to_ratings_goes_smaller_too() -> None:
    roomy, tight = pushed(), pushed(limit=2)
    fits = [RatingFit(policy, likes(7))() for policy in (roomy, tight)]
    assert fits[1] == pytest.approx(fits[0], rel=1e-4, abs=1e-7) and len(fits[0]) == 21
