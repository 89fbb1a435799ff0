"""What a batch holds, and that it is a function of the step and the seed alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from feedback_loop.diffusion.process import Process
from feedback_loop.training.objectives import Batch
from feedback_loop.training.sources import (
    Example,
    ForwardSource,
    NoPreferenceError,
    log_normal,
    logit_normal,
    standardise,
    timestep_weight,
)


def latent(number: float, side: int = 2) -> Tensor:
    return torch.full((1, side, side), float(number))


def source(count: int = 10, batch: int = 4, seed: int = 0, dropout: float = 0.1, sides: tuple[int, ...] = (2,)):
    examples = [Example(latent(i, sides[i % len(sides)]), f"prompt {i % 3}", i / 10) for i in range(count)]
    conds = {"": "nothing"} | {f"prompt {i}": f"cond {i}" for i in range(3)}
    return ForwardSource(examples, conds, Process("eps"), lambda u: 0.1 + 10 * u, batch, seed, dropout)


def numbers(batch: Batch) -> list[int]:
    """Which examples a batch holds: each latent is filled with its number."""
    return [int(x[0, 0, 0]) for x in batch.x0]


def same(a: Batch, b: Batch) -> bool:
    tensors = ("x0", "x", "sigma", "weight", "label")
    return a.cond == b.cond and all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


def test_a_batch_depends_on_its_step_and_the_seed_alone() -> None:
    """A run that goes on at step 7 sees what one that ran through saw, whatever was asked before."""
    through, later = source(), source()
    batches = [through.batch_at(step) for step in range(8)]
    assert same(later.batch_at(7), batches[7])
    assert same(later.batch_at(2), batches[2])
    assert not same(source(seed=1).batch_at(7), batches[7])


def test_every_picture_comes_once_before_any_comes_twice() -> None:
    """12 pictures in batches of 4: three steps an epoch, each epoch in another order."""
    made = source(count=12)
    epochs = [[n for step in range(3) for n in numbers(made.batch_at(3 * epoch + step))] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_batch_holds_latents_of_one_size_and_is_always_full() -> None:
    """7 pictures in two sizes, batches of 3: 2 + 1 steps, of which the last of a size is filled up with its own."""
    made = source(count=7, batch=3, sides=(2, 3))
    batches = [made.batch_at(step) for step in range(3)]
    assert all(len(batch) == 3 for batch in batches)
    assert {n for batch in batches for n in numbers(batch)} == set(range(7))
    assert sorted(batch.x0.shape[-1] for batch in batches) == [2, 2, 3]


def test_pictures_come_with_their_own_prompt_and_label() -> None:
    batch = source(dropout=0.0).batch_at(0)
    assert batch.cond == [f"cond {n % 3}" for n in numbers(batch)]
    assert batch.label.tolist() == pytest.approx([n / 10 for n in numbers(batch)])


def test_one_caption_in_ten_is_dropped() -> None:
    """4000 captions at 10 %: 400 expected, standard deviation 19; 4 of those are 76."""
    made = source(count=40, batch=40)
    dropped = Counter(cond for step in range(100) for cond in made.batch_at(step).cond)["nothing"]
    assert abs(dropped - 400) < 76


def test_x_is_the_forward_process_of_fresh_noise() -> None:
    made = source(count=4000, batch=4000)
    batch = made.batch_at(0)
    noise = (batch.x - batch.x0) / batch.sigma.reshape(-1, 1, 1, 1)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.04)
    assert noise.std().item() == pytest.approx(1.0, abs=0.04)


def test_noise_levels_are_spread_over_the_batch() -> None:
    """sigma = .1 + 10 u with one u in each tenth of 0..1: one sigma in each unit interval from .1 on."""
    sigma = source(batch=10).batch_at(3).sigma
    assert sorted(((sigma - 0.1).floor()).int().tolist()) == list(range(10))
    assert (sigma[1:] < sigma[:-1]).any() and (sigma[1:] > sigma[:-1]).any()


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_min_snr_caps_the_weight_of_the_clean_error_at_five(kind: str) -> None:
    """kappa * weight = min(1 / sigma^2, 5): at sigma .1 not 100 but 5, at 1 it is 1, at 10 it is .01."""
    process, sigma = Process(kind), torch.tensor([0.1, 1.0, 10.0])  # type: ignore[arg-type]
    weight = process.kappa(sigma) * timestep_weight(process, sigma)
    assert weight.tolist() == pytest.approx([5.0, 1.0, 0.01], rel=1e-5)


def test_flow_and_edm_keep_their_native_weight() -> None:
    for kind in ("flow", "edm"):
        assert timestep_weight(Process(kind), torch.tensor([0.1, 0.9])).tolist() == [1.0, 1.0]  # type: ignore[arg-type]


def test_quantiles_of_the_noise_distributions() -> None:
    """The quantiles of N(0, 1) at .15866, .5, .84134 are -1, 0, 1: sigmoid and exp(-1.2 + 1.2 z) of them."""
    u = torch.tensor([0.158655, 0.5, 0.841345], dtype=torch.float64)
    assert logit_normal(u).tolist() == pytest.approx([0.268941, 0.5, 0.731059], rel=1e-4)
    assert log_normal(u).tolist() == pytest.approx([0.090718, 0.301194, 1.0], rel=1e-4)


def test_ratings_are_standardised_over_all_pictures() -> None:
    """Mean 3, variance (4 + 1 + 0 + 1 + 4) / 5 = 2."""
    z = standardise(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), list("abcde"))
    assert z.tolist() == pytest.approx([x / 2**0.5 for x in (-2, -1, 0, 1, 2)], rel=1e-6)


def test_a_prompt_with_many_ratings_is_standardised_by_itself() -> None:
    """Prompt b is 10 better throughout: by itself each half is -1, 1 over and over."""
    values = torch.tensor([0.0, 1.0] * 8 + [10.0, 11.0] * 8)
    z = standardise(values, ["a"] * 16 + ["b"] * 16)
    # spread within a prompt is .5, but a tenth of the whole's, sqrt(25.25) / 10 = .5025, is larger
    assert z.tolist() == pytest.approx([-0.5 / 0.50249, 0.5 / 0.50249] * 16, rel=1e-4)


def test_a_prompt_whose_pictures_are_all_rated_alike_says_nothing() -> None:
    z = standardise(torch.tensor([4.0] * 16 + [1.0, 2.0]), ["a"] * 16 + ["b", "c"])
    assert z[:16].tolist() == [0.0] * 16
    assert z[16] < z[17] < 0


def test_equal_ratings_are_refused() -> None:
    with pytest.raises(NoPreferenceError, match="All 5 ratings are the same"):
        standardise(torch.full((5,), 0.75), list("abcde"))


def test_a_source_without_pictures_or_conditions_is_refused() -> None:
    with pytest.raises(NoPreferenceError):
        source(count=0)
    with pytest.raises(KeyError, match="No condition for the prompt 'b'"):
        ForwardSource([Example(latent(0), "b", 1.0)], {"": 0}, Process("eps"), lambda u: u, 1, 0)
