"""Statistics of pictures whose numbers are known, and drift in standard deviations of A."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from feedback_loop.feedback import evaluation
from feedback_loop.feedback.drift import drift, statistics


def noise(count: int, size: int = 64, power: float = 0.0) -> Tensor:
    """Grey pictures whose power falls as frequency^-power, of random phases."""
    f = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.fftfreq(size)[None]).clamp_min(1 / size)
    white = torch.fft.fft2(torch.randn(count, size, size, generator=torch.Generator().manual_seed(3)))
    shaped = torch.fft.ifft2(white * f ** (-power / 2)).real
    return (0.5 + 0.1 * shaped / shaped.std())[:, None].expand(-1, 3, -1, -1)


def test_of_a_plain_colour_brightness_and_saturation_are_known_and_the_rest_is_none() -> None:
    """Pure red at half: luma .5 * .2126; largest less smallest colour .5."""
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, 0] = 0.5
    found = {name: float(value) for name, value in statistics(picture).items()}
    assert found["brightness"] == pytest.approx(0.1063) and found["saturation"] == pytest.approx(0.5)
    assert found["contrast"] == found["sharpness"] == pytest.approx(0, abs=1e-6)
    assert found["spectrum"] == pytest.approx(0, abs=1e-6)


def test_of_a_half_black_half_white_picture_the_contrast_is_a_half() -> None:
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., 8:] = 1
    assert float(statistics(picture)["contrast"]) == pytest.approx(0.5)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 3.0])
def test_the_slope_of_the_spectrum_is_the_one_that_the_pictures_were_made_with(power: float) -> None:
    assert float(statistics(noise(8, power=power))["spectrum"].mean()) == pytest.approx(-power, abs=0.15)


def test_blur_lowers_sharpness_and_slope_and_leaves_brightness() -> None:
    a = noise(8, power=1.0)
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(a, (1, 1, 1, 1), mode="circular"), 3, 1)
    found = drift(a, blurred)
    assert found["sharpness"].high < 0 and found["spectrum"].high < 0
    assert found["brightness"].value == pytest.approx(0, abs=1e-3)


def test_drift_is_the_paired_difference_in_standard_deviations_of_a() -> None:
    """Levels .1 .. .5 have the standard deviation .1581; all .1 brighter: .6325, with no doubt."""
    a = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    found = drift(a, a + 0.1)["brightness"]
    assert tuple(found) == pytest.approx((0.6325,) * 3, abs=1e-3)


def test_a_model_against_itself_does_not_drift() -> None:
    pictures = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    assert all(tuple(found) == (0.0, 0.0, 0.0) for found in drift(pictures, pictures).values())


def test_where_a_does_not_vary_drift_is_unknown() -> None:
    same = torch.full((3, 3, 8, 8), 0.5)
    assert math.isnan(drift(same, same + 0.1)["brightness"].value)


def test_the_difference_in_diversity_is_that_of_the_two_diversities() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 12, 4, generator=generator)
    rows = [i // 4 for i in range(12)]
    found = evaluation.diversity_difference(a, 0.5 * b, rows, range(12))
    assert found.value == pytest.approx(evaluation.diversity(0.5 * b, rows) - evaluation.diversity(a, rows))
    assert found.low < found.value < found.high < 0


def test_the_jackknife_leaves_out_one_unit_with_all_its_distances() -> None:
    """Four pictures of one group: recomputed without each by hand."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 4, 3, generator=generator)
    found = evaluation.diversity_difference(a, b, [0] * 4, range(4))
    rest = [[j for j in range(4) if j != i] for i in range(4)]
    without = torch.tensor([evaluation.diversity(b[keep]) - evaluation.diversity(a[keep]) for keep in rest])
    error = math.sqrt(3 / 4 * float((without - without.mean()).square().sum()))
    assert found.high - found.value == pytest.approx(3.1824 * error, rel=1e-3)


def test_the_interval_of_the_difference_in_diversity_covers_it() -> None:
    """100 pairs of samples of one distribution, whose true difference is 0: about 95 are covered, 88 at least."""
    generator = torch.Generator().manual_seed(2)
    rows = [i // 4 for i in range(24)]
    covered = 0
    for _ in range(100):
        a, b = torch.randn(2, 24, 6, generator=generator)
        found = evaluation.diversity_difference(a, b, rows, rows)
        covered += found.low <= 0 <= found.high
    assert covered >= 88


def test_too_few_pictures_tell_nothing_of_diversity() -> None:
    one = evaluation.diversity_difference(torch.zeros(1, 2), torch.ones(1, 2), [0], [0])
    assert math.isnan(one.value) and one.high == math.inf
    two = evaluation.diversity_difference(torch.zeros(2, 2), torch.eye(2), [0, 0], [0, 1])
    assert two.value == pytest.approx(math.sqrt(2)) and two.low == -math.inf
