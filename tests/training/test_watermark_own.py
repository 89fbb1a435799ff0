"""The watermark detector fitted to one's own pictures: who is tested on, what is kept, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from feedback_loop.feedback.rewards.auditor import AUDITOR_WEIGHTS, Auditor
from feedback_loop.feedback.rewards.base import RewardError
from feedback_loop.feedback.rewards.files import load_reward, save_reward
from feedback_loop.feedback.rewards.watermark import (
    Detector,
    WatermarkPenalty,
    load_auditor,
    load_detector,
    location,
    log_odds,
)
from feedback_loop.training import audit, backdrops, overlays, watermark, watermark_own
from feedback_loop.training.watermark_own import OwnRecipe, learn, split

QUICK = OwnRecipe(steps=3, crops={64: 12, 128: 6}, marks={64: 8, 128: 7}, tested=4)


def own(count: int, size: int = 96) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [backdrops.backdrop(size, rng) for _ in range(count)]


@pytest.fixture(scope="module")
def auditor() -> Auditor:
    return load_auditor()


def tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def test_a_fifth_is_tested_on_whatever_the_order_and_copies_count_once() -> None:
    pictures = own(20)
    trained, tested = split(pictures)
    again = split([*reversed(pictures), pictures[3], pictures[3]])
    assert (len(trained), len(tested)) == (16, 4)
    assert all(np.array_equal(a, b) for a, b in zip(tested, again[1], strict=True)) and len(again[0]) == 16
    with pytest.raises(RewardError, match="7 different pictures are too few.*at least 8"):
        split([*own(7), own(1)[0]])


@pytest.mark.parametrize("shape", [(300, 120, 3), (40, 64, 3), (64, 64, 4)])
def test_a_crop_is_a_square_of_any_picture(shape: tuple[int, ...]) -> None:
    picture = np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(np.uint8)
    for size in watermark_own.SIZES:
        assert watermark_own.crop(picture, size, np.random.default_rng(0)).shape == (size, size, 3)


def test_the_report_covers_every_family_and_says_which_were_never_trained_on() -> None:
    told: list[float] = []
    detector, report = learn(own(10), QUICK, told.append)
    assert (report.pictures, report.held_out) == (8, 2)
    unseen = {name.replace(" ", "_") for name, trained, *_ in report.rows if not trained}
    assert unseen == set(overlays.HELD_OUT) and len(report.rows) == len(overlays.HELD_OUT | overlays.TRAINED)
    assert told == sorted(told) and told[-1] == pytest.approx(1.0)
    assert all(0 <= number <= 1 for row in report.rows for number in row[2:])
    text = watermark_own.describe(report)
    assert "8 of your pictures, tested on 2 others" in text and "seal (never trained on)" in text
    assert not detector.training and not any(weight.requires_grad for weight in detector.parameters())


def test_a_run_that_made_it_worse_gives_back_what_it_began_with() -> None:
    """Steps of a size that wreck the weights: the held-out families tell, and the report says so."""
    detector, report = learn(own(10), OwnRecipe(**(vars(QUICK) | {"lr": 3.0})), lambda done: None)
    assert not report.better and "comes out as it went in" in watermark_own.describe(report)
    x = tensor(own(2, 64))
    assert torch.equal(detector(x)[0], load_detector()(x)[0])


def test_pictures_that_carry_marks_already_are_counted() -> None:
    """White letters all over dark slopes: most of eight are over the bar (2.5 to 8.2 when written), none without."""
    rng, yy = np.random.default_rng(2), np.mgrid[0:128, 0:128][0] / 128
    slopes = [np.stack([30 + 40 * yy] * 3, -1).astype(np.uint8) + np.uint8(5 * k) for k in range(8)]
    marked = [overlays.lay(p, overlays.mark(overlays.tiled_text, 128, rng), 0.7, (255, 255, 255)) for p in slopes]
    counts = [sum(watermark_own.suspected(load_detector(), p) for p in pictures) for pictures in (slopes, marked)]
    assert counts[0] == 0 and counts[1] >= 4


def test_the_same_pictures_and_seed_give_the_same_detector_and_another_seed_another() -> None:
    pools = [(1.0, watermark_own.pool(own(8), 64, QUICK, np.random.default_rng(1)))]
    recipe = watermark.Recipe(steps=3, pairs=6, hardness=1.0, lr=5e-4)
    first, again = (watermark.train(pools, recipe, start=load_detector()).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = watermark.train(
        pools, watermark.Recipe(steps=3, pairs=6, hardness=1.0, lr=5e-4, seed=1), start=load_detector()
    )
    assert not all(torch.equal(first[name], value) for name, value in other.state_dict().items())


def test_an_own_detector_is_saved_with_its_weights_and_loads_again(tmp_path: Path) -> None:
    torch.manual_seed(3)
    reward, x = WatermarkPenalty(2.0, Detector().eval(), "own"), torch.rand(2, 3, 64, 64)
    save_reward(reward, tmp_path / "own.safetensors")
    loaded = load_reward(tmp_path / "own.safetensors")
    assert torch.equal(loaded(x), reward(x)) and loaded.name == "no watermark (own)"
    assert not torch.equal(loaded(x), WatermarkPenalty(2.0)(x))


def test_a_penalty_saved_by_the_first_version_loads_as_the_shipped_one() -> None:
    """Its settings held the margin alone."""
    assert WatermarkPenalty.from_state({"none": torch.zeros(1)}, {"margin": 3.0}, []).made == "shipped"


@pytest.mark.parametrize("made", ["own", "theirs", 5, None])
def test_a_file_without_the_weights_that_it_speaks_of_is_refused(made: object) -> None:
    with pytest.raises(RewardError, match="train it again|damaged"):
        WatermarkPenalty.from_state({"a": torch.zeros(1)}, {"margin": 3.0, "made": made}, [])


# --- where marks are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 80), (200, 300)])
def test_the_map_is_as_large_as_the_picture_and_brighter_where_the_mark_is(height: int, width: int) -> None:
    """White letters over the left half of a dark slope."""
    picture = torch.linspace(0.1, 0.3, width).expand(1, 3, height, width).clone()
    side = height // 2 * 2
    cover = torch.tensor(overlays.mark(overlays.tiled_text, side, np.random.default_rng(4)))[:, : width // 2]
    picture[..., :side, : cover.shape[1]] += 0.6 * cover / 255
    with torch.no_grad():
        where = location(load_detector(), picture.clamp(0, 1))[0]
    assert where.shape == (height, width) and 0 <= float(where.min()) and float(where.max()) <= 1
    half = cover.shape[1]
    assert float(where[:, :half].mean()) > 2 * float(where[:, -half // 2 :].mean())


def test_a_corners_own_view_can_only_add_to_the_map() -> None:
    """Of a large picture the map is the larger of the whole view's and the corners'."""
    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        where, whole = location(load_detector(), x), load_detector()(torch.nn.functional.interpolate(
            x, size=(128, 128), mode="bilinear", antialias=True, align_corners=False))[1].sigmoid()  # fmt: skip
        whole = torch.nn.functional.interpolate(whole[:, None], size=(256, 256), mode="bilinear", align_corners=False)
    assert (where >= whole[:, 0].clamp(0, 1) - 1e-5).all()


# --- the auditor -----------------------------------------------------------------------------------------------------


def test_the_auditor_shares_neither_architecture_nor_held_out_families_with_the_detector(auditor: Auditor) -> None:
    ours = {(name, tuple(value.shape)) for name, value in auditor.state_dict().items()}
    theirs = {(name, tuple(value.shape)) for name, value in load_detector().state_dict().items()}
    assert all(len(shape) == 1 for _, shape in ours & theirs)  # biases and norms alone
    assert not set(audit.HELD_OUT) & set(overlays.HELD_OUT) and set(audit.HELD_OUT) <= set(overlays.TRAINED)
    assert not set(audit.TRAINED) & set(audit.HELD_OUT) and audit.RECIPE.seed != watermark.Recipe().seed
    assert AUDITOR_WEIGHTS.stat().st_size < 1_000_000


def test_the_auditor_tells_marked_from_clean_on_families_it_never_saw(auditor: Auditor) -> None:
    """White marks of opacity .6 on dark smooth pictures, 40 a family: AUROC at least .7."""
    rng = np.random.default_rng(11)
    yy, xx = np.mgrid[0:64, 0:64] / 64
    slopes = [np.stack([40 + 60 * (xx if k % 2 else yy)] * 3, -1).astype(np.uint8) + np.uint8(k) for k in range(40)]
    clean = log_odds(auditor, tensor(slopes)).numpy()
    for family in audit.HELD_OUT.values():
        laid = [overlays.lay(p, overlays.mark(family, 64, rng), 0.6, (255, 255, 255)) for p in slopes]
        assert watermark.auroc(log_odds(auditor, tensor(laid)).numpy(), clean) > 0.7, family.__name__


def test_the_auditors_picture_logit_lies_between_the_mean_and_the_maximum_of_its_evidence(auditor: Auditor) -> None:
    x = torch.rand(3, 3, 72, 64)
    logit, cells = auditor(x)
    evidence = auditor.evidence(auditor.features((x - 0.5) / 0.25)).flatten(1) + auditor.bias
    assert cells.shape == (3, 9, 8)
    assert (logit >= evidence.mean(dim=1) - 1e-5).all() and (logit <= evidence.amax(dim=1) + 1e-5).all()


def test_the_auditor_as_a_penalty_has_a_gradient(auditor: Auditor) -> None:
    x = torch.rand(1, 3, 64, 64).requires_grad_()
    (gradient,) = torch.autograd.grad(WatermarkPenalty(8.0, made="auditor")(x).sum(), x)
    assert gradient.isfinite().all() and gradient.any()
