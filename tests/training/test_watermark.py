"""The recipe of the watermark detector: marks, batches, measures; and what the weights in the pack can do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from feedback_loop.feedback.rewards.watermark import WEIGHTS, Detector, WatermarkPenalty, load_detector, log_odds, views
from feedback_loop.training import backdrops, overlays, watermark

FAMILIES = {**overlays.TRAINED, **overlays.HELD_OUT}


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector()


def tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_leaves_a_mark_and_leaves_most_of_the_picture(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        cover = overlays.mark(FAMILIES[name], 64, rng)
        assert cover.shape == (64, 64) and cover.dtype == np.uint8
        assert cover.max() > 60 and 0.006 < cover.mean() / 255 < 0.8


def test_held_out_families_are_never_drawn_for_training() -> None:
    assert not set(overlays.TRAINED) & set(overlays.HELD_OUT)
    assert len(overlays.HELD_OUT) >= 3


def test_the_same_seed_draws_the_same_marks_and_pictures() -> None:
    first, again = (watermark.draw_marks(7, 64, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, again)
    one, two = (backdrops.backdrop(64, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(one, two)


def test_laying_a_mark_mixes_ink_into_the_picture_by_cover_and_alpha() -> None:
    """100 + (255 - 100) * .5 * 1 = 177.5 where covered, untouched elsewhere."""
    picture, cover = np.full((64, 64, 3), 100, dtype=np.uint8), np.zeros((64, 64), dtype=np.uint8)
    cover[:32] = 255
    marked = overlays.lay(picture, cover, 0.5, (255, 255, 255))
    assert set(np.unique(marked[:32])) == {177} and set(np.unique(marked[32:])) == {100}


def pool(size: int = 64) -> watermark.Pool:
    rng = np.random.default_rng(1)
    return watermark.Pool(
        np.stack([backdrops.backdrop(size, rng) for _ in range(8)]), watermark.draw_marks(7, size, rng)
    )


def test_a_batch_holds_each_picture_clean_and_marked_with_equal_blur_and_noise() -> None:
    """Where nothing was laid on, both versions are the same but for what the blur spreads and the clamp cuts."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    images, weight = watermark.batch(pool(), 6, 0.0, rng, generator)
    assert images.shape == (12, 3, 64, 64) and weight.shape == (12, 1, 64, 64)
    assert not weight[:6].any() and (weight[6:].amax(dim=(1, 2, 3)) > 0.05).all()
    clean, marked = images.chunk(2)
    untouched = (weight[6:] < 1e-6).expand_as(clean)
    assert torch.allclose(clean[untouched], marked[untouched], atol=1e-5)


def test_training_is_seeded() -> None:
    """Twelve steps twice give the same weights, bit for bit."""
    recipe, losses = watermark.Recipe(steps=12, pairs=8), []
    pools = [(1.0, pool())]
    first = watermark.train(pools, recipe, lambda step, loss, _: losses.append(loss))
    again = watermark.train(pools, recipe)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert len(losses) == 12 and all(np.isfinite(losses))


def test_saved_weights_are_half_precision_and_load_again(tmp_path: Path) -> None:
    fresh = Detector().eval()
    watermark.save_detector(fresh, tmp_path / "w.safetensors")
    loaded, x = load_detector(tmp_path / "w.safetensors"), torch.rand(2, 3, 64, 64)
    assert torch.allclose(loaded(x)[0], fresh(x)[0], atol=5e-3)
    assert (tmp_path / "w.safetensors").stat().st_size < 400_000


def test_auroc_precision_and_true_rate_of_small_lists_by_hand() -> None:
    """Positives 3, 1; negatives 2, 0: of four pairs three are in order: .75. By score 3+ 2- 1+ 0-: precision at the
    positives 1 and 2/3: mean .8333. Threshold at the 99th percentile of (0, 2), 1.98: one of two is above."""
    positive, negative = np.array([3.0, 1.0]), np.array([2.0, 0.0])
    assert watermark.auroc(positive, negative) == pytest.approx(0.75)
    assert watermark.average_precision(positive, negative) == pytest.approx((1 + 2 / 3) / 2)
    assert watermark.true_rate(positive, negative) == pytest.approx(0.5)
    assert watermark.auroc(np.ones(3), np.ones(4)) == pytest.approx(0.5)


# --- the weights in the pack -----------------------------------------------------------------------------------------


def test_the_weights_in_the_pack_are_small(detector: Detector) -> None:
    assert WEIGHTS.stat().st_size <= 400_000
    assert sum(p.numel() for p in detector.parameters()) <= 150_000


def test_the_detector_tells_marked_from_clean_on_families_it_never_saw(detector: Detector) -> None:
    """White marks of opacity .6 on dark smooth pictures, held-out families: AUROC of 40 a family at least .8."""
    rng = np.random.default_rng(11)
    yy, xx = np.mgrid[0:64, 0:64] / 64
    slopes = [np.stack([40 + 60 * (xx if k % 2 else yy)] * 3, -1).astype(np.uint8) + np.uint8(k) for k in range(40)]
    clean = log_odds(detector, tensor(slopes)).numpy()
    for family in overlays.HELD_OUT.values():
        laid = [overlays.lay(p, overlays.mark(family, 64, rng), 0.6, (255, 255, 255)) for p in slopes]
        assert watermark.auroc(log_odds(detector, tensor(laid)).numpy(), clean) > 0.8, family.__name__


def test_the_published_table_says_what_the_held_out_families_gave() -> None:
    report = json.loads((Path(__file__).parents[2] / "docs" / "watermark.json").read_text())
    held_out = {row["family"] for row in report["rows"] if row["held_out"]}
    assert set(overlays.HELD_OUT) <= held_out
    assert all(0 <= row[key] <= 1 for row in report["rows"] for key in ("auroc", "ap", "tpr_at_1_fpr"))


@pytest.mark.parametrize(
    ("height", "width", "count", "first"),
    [(64, 64, 1, (64, 64)), (40, 80, 1, (64, 128)), (127, 100, 1, (127, 100)), (512, 768, 5, (128, 192))],
)
def test_a_small_picture_is_looked_at_once_and_a_large_one_at_its_corners_too(height, width, count, first) -> None:
    seen = views(torch.rand(1, 3, height, width))
    assert len(seen) == count and seen[0].shape[-2:] == first
    assert all(view.shape[-2:] == (128, 128) for view in seen[1:])


def test_a_mark_in_a_corner_of_a_large_picture_is_seen_through_its_crop(detector: Detector) -> None:
    """The log-odds of a picture are the largest of its views', so never below those of the whole."""
    x = torch.rand(2, 3, 256, 256)
    assert (log_odds(detector, x) >= detector(views(x)[0])[0] - 1e-6).all()


def test_the_penalty_is_linear_in_the_log_odds_of_a_mark_and_flat_without_one() -> None:
    """-softplus(l + 3): slope -1 for l = 10 (softplus' = s(13) = 1 - 2e-6), -.0009 for l = -10."""

    class Fixed(Detector):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images.mean(dim=(1, 2, 3)) * 1.0, images[:, 0]

    penalty = WatermarkPenalty(detector=Fixed())
    for odds, slope in ((10.0, -1.0), (-10.0, -0.0009)):
        x = torch.full((1, 3, 64, 64), odds, requires_grad=True)
        (gradient,) = torch.autograd.grad(penalty(x).sum(), x)
        assert float(gradient.sum()) == pytest.approx(slope, abs=1e-4)


def test_the_penalty_reaches_the_pixels_with_the_slope_of_its_formula(detector: Detector) -> None:
    """Central difference along a random direction, double precision."""
    penalty = WatermarkPenalty(detector=Detector().double().eval())
    penalty.detector.load_state_dict(detector.double().state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 64, 64, generator=generator, dtype=torch.float64).requires_grad_()
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    score = lambda images: penalty.score(images, None, lambda encoder: images).sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(score(x), x)
    with torch.no_grad():
        slope = (score(x + 1e-6 * direction) - score(x - 1e-6 * direction)) / 2e-6
    detector.float()
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-8)
