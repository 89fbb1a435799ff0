"""DPO and KTO: their values at the start, their gradients, and what they must never do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from feedback_loop.training.objectives import Batch, Objective, View
from feedback_loop.training.preferences import Dpo, Kto, auto_beta, dpo, kto, reference_gain, safe_share

DTYPE = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def batch_of(x0: Tensor, label: Tensor, weight: Tensor | None = None) -> Batch:
    ones = torch.ones(len(x0), dtype=DTYPE)
    return Batch(x0, x0, ones, ones if weight is None else weight, label, [None] * len(x0))


def start(objective: Objective, label: Tensor) -> tuple[Tensor, Tensor, Tensor, Batch]:
    """(losses, gradient in D, D, batch) where theta is the base model itself."""
    x0, d = random(len(label), 2, 3, seed=1), random(len(label), 2, 3, seed=2)
    batch = batch_of(x0, label)
    theta = d.clone().requires_grad_()
    losses = objective.losses({"theta": theta, "ref": d}, batch)
    losses.sum().backward()
    assert theta.grad is not None
    return losses.detach(), theta.grad, d, batch


def error_gradient(d: Tensor, batch: Batch) -> Tensor:
    """Of m = mean (D - x0)^2 of each picture, in D: 2 (D - x0) / 6 for pictures of 6 numbers."""
    return 2 * (d - batch.x0) / 6


def test_dpo_is_log_2_at_the_start() -> None:
    """All margins are 0, and -log sigmoid(0) = log 2 whatever beta is; gaps of 1 leave it so."""
    losses, *_ = start(Dpo(), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=DTYPE))
    assert losses.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-12)


@pytest.mark.parametrize("beta", [2000.0, 5.0])
def test_dpos_gradient_at_the_start_is_a_quarter_of_beta_times_the_errors(beta: float) -> None:
    """d/dm_w of -log sigmoid(-beta / 2 * margin) at 0 is beta / 2 * sigmoid(0) = beta / 4, and -beta / 4 for m_l; times
    the pair's gap, here 1 and .5."""
    label = torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=DTYPE)
    _, gradient, d, batch = start(Dpo(beta, safe=False), label)
    expected = beta / 4 * label.reshape(-1, 1, 1) * error_gradient(d, batch)
    assert torch.allclose(gradient, expected, rtol=1e-12)


def test_exchanging_chosen_and_rejected_turns_the_margin_around() -> None:
    """log sigmoid(-t) and log sigmoid(t) differ by t = beta / 2 * margin: with margin .2 - .1 and beta 10 by .5."""
    one, two, r = torch.tensor([0.5]), torch.tensor([0.4]), torch.tensor([0.3])
    there, back = dpo(one, two, r, r, 10.0), dpo(two, one, r, r, 10.0)
    assert (there - back).item() == pytest.approx(0.5)


def test_dpos_loss_is_the_published_scripts_at_half_its_beta() -> None:
    """-logsigmoid(-.5 * b * (model_diff - ref_diff)), as the published training scripts write it, is ours at beta = b;
    the form without the half at 2500 is ours at 5000."""
    m_w, m_l, r_w, r_l = random(4, 8).abs() / 100
    published = -torch.nn.functional.logsigmoid(-2500 * ((m_w - m_l) - (r_w - r_l)))
    assert torch.allclose(dpo(m_w, m_l, r_w, r_l, 5000.0), published, rtol=1e-12)


def test_the_rejected_is_followed_only_as_far_as_the_chosen_allows() -> None:
    """g_w = (1, 0): with g_l = (4, 3) the inner product 4 exceeds |g_w|^2 = 1, so a quarter; (.5, 9) and (-3, 1) are
    harmless."""
    g_w = torch.tensor([[1.0, 0.0]] * 3)
    g_l = torch.tensor([[4.0, 3.0], [0.5, 9.0], [-3.0, 1.0]])
    assert safe_share(g_w, g_l).tolist() == [0.25, 1.0, 1.0]


@pytest.mark.parametrize("seed", range(5))
def test_with_the_safeguard_a_step_never_raises_the_chosens_error(seed: int) -> None:
    """A model whose estimate is one vector b for every input, where both gradients meet in the same weights. The
    rejected picture lies beyond the chosen one, so that fleeing it leads away from the chosen, too: without the
    safeguard the step raises the chosen's error."""
    chosen = random(1, 4, seed=seed)
    b = torch.zeros(4, dtype=DTYPE, requires_grad=True)
    x0 = torch.cat([chosen, 3 * chosen])
    before = (b - x0[0]).square().mean().item()

    def after(safe: bool) -> float:
        d = b.expand(2, 4)
        losses = Dpo(10.0, safe).losses({"theta": d, "ref": d.detach()}, batch_of(x0, torch.tensor([1.0, -1.0])))
        (gradient,) = torch.autograd.grad(losses.sum(), b)
        return (b - 1e-3 * gradient - x0[0]).square().mean().item()

    assert after(safe=True) <= before + 1e-12
    assert after(safe=False) > before


def test_auto_beta_falls_as_margins_grow() -> None:
    """beta / 2 * rms = 2: margins of .01 give 400; margins of 0 the upper bound, of 1 the lower."""
    assert auto_beta(torch.tensor([0.01, -0.01])).item() == pytest.approx(400)
    assert auto_beta(torch.zeros(3)).item() == 5000
    assert auto_beta(torch.ones(3)).item() == 200


def test_kto_is_one_half_at_the_start() -> None:
    """Gains and their mean are 0, and 1 - sigmoid(0) = .5 for liked and disliked alike."""
    losses, *_ = start(Kto(), torch.tensor([1.0, -1.0, 1.0], dtype=DTYPE))
    assert losses.tolist() == [0.5] * 3


def test_ktos_gradient_at_the_start_is_a_quarter_of_beta_times_the_error() -> None:
    """d/dm of 1 - sigmoid(s beta (-(m - m_ref) - z)) at 0, z without gradient, is s beta / 4."""
    label = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=DTYPE)
    _, gradient, d, batch = start(Kto(40.0), label)
    assert torch.allclose(gradient, 40 / 4 * label.reshape(-1, 1, 1) * error_gradient(d, batch), rtol=1e-12)


def test_ktos_reference_is_the_mean_gain_and_never_negative() -> None:
    assert reference_gain(torch.tensor([0.1, 0.3])).item() == pytest.approx(0.2)
    assert reference_gain(torch.tensor([0.1, -0.3])).item() == 0.0
    assert kto(torch.tensor([0.2]), torch.tensor([1.0]), torch.tensor(0.2)).item() == 0.5


def test_likes_and_dislikes_weigh_the_same_however_many_there_are() -> None:
    """Three likes and one dislike of five pictures: 4 / 2 = 2 for each side, so 2/3 each and 2; the one in the middle
    says nothing."""
    labels = Kto().labels(torch.tensor([0.5, 2.0, 1.0, -1.0, 0.0]))
    assert labels.tolist() == pytest.approx([2 / 3] * 3 + [-2.0, 0.0])


@pytest.mark.parametrize("objective", [Dpo(), Dpo(0.0), Kto()])
def test_a_part_of_a_batch_that_knows_the_whole_gives_the_loss_that_it_has_in_the_whole(objective: Objective) -> None:
    """Auto-beta and KTO's reference come from the whole batch, also where it is worked off in parts."""
    label = torch.tensor([1.0, -1.0] * 3, dtype=DTYPE)
    batch = batch_of(random(6, 5, seed=1), label)
    views: dict[View, Tensor] = {"theta": random(6, 5, seed=2), "ref": random(6, 5, seed=3)}
    whole = objective.losses(views, batch)
    parts = []
    for start_ in (0, 2, 4):
        rows = slice(start_, start_ + 2)
        part = batch.part(start_, start_ + 2)
        part = Batch(**{**part.__dict__, "measured": objective.measure(views, batch)})
        parts.append(objective.losses({name: d[rows] for name, d in views.items()}, part))
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-12)
