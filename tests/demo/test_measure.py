"""The figures of report.json, on rows so small that each can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from feedback_loop.demo import judge, measure, world

PROMPTS = [measure.Prompt("", {"shape": word}, seed) for seed, word in enumerate(world.SHAPES[:4])]
WATERMARK = (0.15 / (0.35 * 0.65)) ** 0.5  # what a watermark costs: its share's root over its standard deviation
T_OF_THREE = 3.18245  # the .975 quantile of Student's t with 3 degrees of freedom


def row(watermark: list[int], features: np.ndarray) -> measure.Row:
    """Two pictures of each prompt, alike in all but the watermark; the first of each has the shape that was asked."""
    scene = world.sample_scene(np.random.default_rng(0))
    truth = judge.truth_of_scenes([scene] * 8)
    shapes = np.array([i if first else 9 for i in range(4) for first in (True, False)])
    counts = np.array([1, 1, 2, 2, 3, 3, 1, 1])  # so that the taste has a spread
    truth = replace(truth, watermark=np.array(watermark, float), shape=shapes, count=counts)
    return measure.Row(torch.zeros(8, 3, 4, 4), truth, PROMPTS, features)


def half_width(difference: list[float]) -> float:
    """Of the interval over four prompts whose two pictures differ alike: pictures of one prompt count once."""
    return T_OF_THREE * float(np.std(difference, ddof=1)) / 2


@pytest.fixture
def plain() -> measure.Row:
    """All marked; every two pictures are sqrt(2) apart."""
    return row([1] * 8, np.eye(8, dtype=np.float32))


def test_watermarks_that_go_for_two_prompts_of_four_are_counted_by_prompt(plain: measure.Row) -> None:
    found = measure.summary(row([0, 0, 0, 0, 1, 1, 1, 1], plain.features), plain)
    half = half_width([1, 1, 0, 0])
    assert found["n"] == 8 and found["watermark_rate"] == 0.5
    assert found["watermark_difference_interval"] == pytest.approx([-0.5 - half, -0.5 + half], abs=1e-5)
    gain = WATERMARK / 2
    assert found["taste_gain"] == pytest.approx(gain)
    assert found["taste_gain_interval"] == pytest.approx([gain - WATERMARK * half, gain + WATERMARK * half], abs=1e-5)
    assert found["taste_gain_without_watermark"] == 0
    assert found["taste_gain_without_watermark_interval"] == [0, 0]


def test_the_shape_asked_for_is_there_in_every_other_picture(plain: measure.Row) -> None:
    found = measure.summary(plain, plain)
    assert found["attribute_accuracy"] == 0.5
    assert found["attribute_difference_interval"] == [0, 0]


def test_two_equal_pictures_for_each_prompt_leave_24_of_28_distances(plain: measure.Row) -> None:
    """8 pictures have 28 pairs, 4 of them of one prompt. Those 4 are at no distance, the others at sqrt(2)."""
    found = measure.summary(row([1] * 8, np.eye(8, dtype=np.float32).repeat(2, 0)[:8]), plain)
    assert found["diversity"] == pytest.approx(2**0.5 * 24 / 28)
    assert found["diversity_ratio"] == pytest.approx(24 / 28)
    assert found["diversity_within_prompt_ratio"] == 0


def test_a_row_is_worked_out_once_though_every_other_is_compared_with_it(plain: measure.Row) -> None:
    measure.summary(plain, plain)
    worked_out = plain.numbers
    measure.summary(row([0] * 8, plain.features), plain)
    assert plain.numbers is worked_out
