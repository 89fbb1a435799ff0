"""The loop on a network of three linear layers: identities, and a taste that a LoRA learns from rated numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from feedback_loop.training.loop import DivergedError, Plan, Step, gradients, train
from feedback_loop.training.objectives import Nft, Objective, Sft
from feedback_loop.training.sources import ForwardSource

from .small import NOISY, Policy, progress_of, source


def run(policy: Policy, objective: Objective, made: ForwardSource, plan: Plan, **options: Any) -> list[Step]:
    steps: list[Step] = []
    train(policy, made, objective, plan, progress_of(policy), steps.append, **options)
    return steps


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("objective", [Sft(), Sft(kl=0.1), Nft()])
@pytest.mark.parametrize("parts", [2, 3, 4, 7])
def test_a_batch_worked_off_in_parts_has_the_same_gradient(objective: Objective, parts: int) -> None:
    """7 pictures: 4 parts are 2, 2, 2, 1 pictures, so a mean of means would be wrong."""
    policy = Policy()
    push(policy)
    batch = source(torch.rand(20), batch=7).batch_at(0)
    optimizer = torch.optim.SGD(policy.parameters())
    whole, _ = gradients(policy, objective, batch, optimizer)
    expected = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    in_parts, _ = gradients(policy, objective, batch, optimizer, parts)
    assert in_parts == pytest.approx(whole, rel=1e-5)
    assert len(expected) == len(policy.parameters())
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        assert parameter.grad is not None and torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def push(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_stays_so() -> None:
    """6 pictures, room for 2: 6 and 3 fail, then 4 parts of 2, 2, 2; the second step starts with these."""
    policy, roomy = Policy(limit=2), Policy()
    labels = torch.linspace(0, 2, 12)
    run(policy, Sft(), source(labels), Plan(2, 1e-2))
    run(roomy, Sft(), source(labels), Plan(2, 1e-2))
    assert policy.sizes == [6, 3, 2, 2, 2, 2, 2, 2]
    assert roomy.sizes == [6, 6]
    for a, b in zip(policy.parameters(), roomy.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(Policy(limit=0), Sft(), source(torch.rand(12)), Plan(1, 1e-2))


def test_ratings_in_the_middle_leave_every_parameter_as_it_was_bit_for_bit() -> None:
    """r = 1/2 prefers nothing: NFT's gradient is zero and AdamW without decay does not move."""
    policy = Policy()
    before = policy.state()
    steps = run(policy, Nft(), source(torch.full((12,), 0.5)), Plan(5, 1e-2))
    assert equal(policy.state(), before)
    assert all(step.grad_norm == 0 for step in steps)


def test_the_base_model_is_never_changed() -> None:
    policy = Policy()
    adapter = {id(p) for p in policy.parameters()}
    frozen = [p for p in policy.network.parameters() if id(p) not in adapter]
    before = [p.detach().clone() for p in frozen]
    run(policy, Sft(), source(torch.rand(12)), Plan(5, 1e-2))
    assert equal(frozen, before) and len(frozen) == 6


def test_the_same_seeds_give_the_same_lora_bit_for_bit() -> None:
    states = []
    for seed in (0, 0, 1):
        policy = Policy(seed=seed)
        run(policy, Sft(), source(torch.linspace(0, 2, 12), seed=seed), Plan(5, 1e-2))
        states.append([p.detach().clone() for p in policy.parameters()])
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_what_on_step_raises_ends_the_run_after_a_whole_step() -> None:
    policy, other = Policy(), Policy()
    made = source(torch.rand(12, generator=torch.Generator().manual_seed(0)))

    class Cancelled(BaseException):
        pass

    def cancel(step: Step) -> None:
        if step.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(policy, made, Sft(), Plan(9, 1e-2), progress_of(policy), cancel)
    with pytest.raises(Cancelled):
        train(other, made, Sft(), Plan(9, 1e-2), progress_of(other), cancel)
    assert equal(policy.state(), other.state())
    assert any(p.any() for p in policy.parameters()[1::2])


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights() -> None:
    policy = Policy()
    before = policy.state()
    with pytest.raises(DivergedError, match="step 1.*lower learning rate"):
        run(policy, Sft(), source(torch.full((12,), float("nan"))), Plan(3, 1e-2))
    assert equal(policy.state(), before)


def test_the_learning_rate_rises_over_a_twentieth_and_falls_to_nothing() -> None:
    """100 steps: up over 5, then down to 1/96 of the peak at the last step."""
    plan = Plan(100, 1.0)
    rates = [plan.lr_at(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == pytest.approx(95 / 96) and rates[99] == pytest.approx(1 / 96)
    assert all(b < a for a, b in zip(rates[4:], rates[5:], strict=False))
    assert Plan(1, 1.0).lr_at(0) == 1.0


def test_the_gradient_is_clipped_but_its_size_is_reported() -> None:
    """Labels of 10,000 make a norm far above 1, which is reported; what the optimiser gets has norm 1."""
    policy = Policy()
    push(policy)
    steps = run(policy, Sft(), source(torch.full((12,), 1e4)), Plan(1, 1e-2))
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    assert steps[0].grad_norm > 1
    assert norm.item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("objective", "steps"), [(Sft(), 400), (Nft(beta=0.5), 400)])
def test_a_taste_for_one_direction_moves_the_denoiser_that_way(objective: Sft | Nft, steps: int) -> None:
    """Pictures x0 ~ N(0, 1) in two numbers, rated by the first. At sigma 3, where the prior decides, the first number
    of the estimate rises and the second stays. For RWR by 9 / 10 of E[w x] / E[w] = .83, had it time to converge."""
    generator = torch.Generator().manual_seed(3)
    rating = torch.randn(512, 1, 1, 2, generator=generator)[:, 0, 0, 0]
    policy = Policy()
    pretrain(policy)
    made = source(objective.labels((rating - rating.mean()) / rating.std()), batch=64)
    before = estimate(policy)
    run(policy, objective, made, Plan(steps, 1e-2))
    moved = estimate(policy) - before
    assert moved[0] > 0.4
    assert abs(moved[1]) < 0.2


def estimate(policy: Policy) -> Tensor:
    """Mean clean estimate of pure noise at the noisiest level."""
    x = NOISY * torch.randn(256, 1, 1, 2, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        return policy.denoise(x, torch.full((256,), NOISY), [1.0] * 256).mean((0, 1, 2))


def pretrain(policy: Policy) -> None:
    """The correction that the ideal denoiser x / (1 + sigma^2) needs is none, so the last layer is set to zero."""
    with torch.no_grad():
        last = policy.adapters.layers[-1].get_base_layer()
        last.weight.zero_()
        last.bias.zero_()
