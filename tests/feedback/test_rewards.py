"""The contract of rewards, colour measures with derived numbers, combinations, and rewards on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from feedback_loop.feedback.rewards.base import Reward, RewardError, embed_once
from feedback_loop.feedback.rewards.colour import PROPERTIES, ColourReward
from feedback_loop.feedback.rewards.combine import CombinedReward
from feedback_loop.feedback.rewards.files import HEADER, load_reward, read_header, save_reward
from feedback_loop.feedback.rewards.taste import TENSORS, TasteReward


class MeanEncoder:
    """Features: the mean of each channel and its square, scaled by a weight; counts how often it ran."""

    def __init__(self, id: str = "mean-1") -> None:
        self.id, self.runs, self.network = id, 0, nn.Linear(6, 6, bias=False).requires_grad_(False)
        nn.init.eye_(self.network.weight)

    def __call__(self, images: Tensor) -> Tensor:
        self.runs += 1
        mean = images.mean(dim=(2, 3))
        return self.network(torch.cat([mean, mean**2], dim=1))

    def networks(self) -> list[nn.Module]:
        return [self.network]


def taste(encoder: MeanEncoder, caution: float = 1.0) -> TasteReward:
    """Likes red, and is unsure along blue."""
    tensors = {
        "centre": torch.zeros(6),
        "scale": torch.ones(6),
        "weight": torch.tensor([2.0, 0, 0, 0, 0, 0]),
        "root": torch.tensor([[0.0], [0], [3], [0], [0], [0]]),
    }
    return TasteReward(encoder, tensors, caution)


def flat(*colours: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colours).view(-1, 3, 1, 1).expand(-1, 3, 16, 16).clone()


def pictures(n: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 24, 20, generator=torch.Generator().manual_seed(seed))


def test_a_flat_grey_picture_has_its_level_as_brightness_and_nothing_else() -> None:
    """Luma weights sum to 1, so (.4, .4, .4) has brightness .4; no spread, no chroma. sqrt(1e-6) = .001 is the floor.

    Sharpness: log10 of sqrt(1e-6) is -3.
    """
    grey = flat((0.4, 0.4, 0.4))
    found = {name: float(measure(grey)) for name, (measure, _) in PROPERTIES.items()}
    assert found["brightness"] == pytest.approx(0.4, abs=1e-6)
    assert found["saturation"] == pytest.approx(0) and found["warmth"] == pytest.approx(0)
    assert found["contrast"] < 0.0011 and found["colourfulness"] < 0.003
    assert found["sharpness"] == pytest.approx(-3, abs=1e-3)


def test_measures_of_pure_colours_are_what_their_formulas_say() -> None:
    """Red: luma .2126, chroma 1, warmth 1; red-green 1 and yellow-blue .5, so .3 * sqrt(1.25) = .3354 colourful."""
    red = flat((1.0, 0.0, 0.0))
    found = {name: float(measure(red)) for name, (measure, _) in PROPERTIES.items()}
    assert found["brightness"] == pytest.approx(0.2126, abs=1e-5)
    assert found["saturation"] == pytest.approx(1) and found["warmth"] == pytest.approx(1)
    assert found["colourfulness"] == pytest.approx(0.3 * 1.25**0.5, abs=0.003)


def test_half_black_half_white_has_contrast_one_half() -> None:
    """Standard deviation of 0 and 1 in equal parts is .5."""
    halves = torch.zeros(1, 3, 16, 16)
    halves[..., 8:] = 1
    assert float(PROPERTIES["contrast"][0](halves)) == pytest.approx(0.5, abs=1e-5)


def test_a_checkerboard_is_sharper_than_its_blur() -> None:
    """Inside a checkerboard of 0 and 1 the Laplacian is +-4, rms 4: log10(4) = .602, a little less with the border."""
    board = (torch.arange(32)[:, None] + torch.arange(32)[None]).remainder(2).float().expand(1, 3, 32, 32)
    sharp = float(PROPERTIES["sharpness"][0](board))
    blurred = torch.nn.functional.avg_pool2d(board, 3, 1, 1)
    assert 0.5 < sharp < 0.603
    assert float(PROPERTIES["sharpness"][0](blurred)) < sharp - 0.3


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_gradient_of_every_colour_reward_is_its_slope(name: str) -> None:
    """Along a random direction d, (r(x + h d) - r(x - h d)) / 2h equals <grad, d>; double precision, h = 1e-5."""
    measure, _ = PROPERTIES[name]
    x = pictures(2).double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad(measure(x).sum(), x)
    with torch.no_grad():
        slope = (measure(x + 1e-5 * direction) - measure(x - 1e-5 * direction)).sum() / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", PROPERTIES)
def test_gradients_stay_finite_on_a_flat_picture_where_spreads_are_zero(name: str) -> None:
    x = flat((0.5, 0.5, 0.5)).requires_grad_()
    for reward in (ColourReward(name), ColourReward(name, target=float(ColourReward(name)(x).detach()))):
        (gradient,) = torch.autograd.grad(reward(x).sum(), x)
        assert gradient.isfinite().all()


def test_less_is_the_negative_of_more_and_a_target_is_best_at_its_value() -> None:
    """At the target the reward is .05 - .05 = 0; one unit (.18) beside it .05 - sqrt(1 + .0025) = -.951."""
    x = flat((0.5, 0.5, 0.5), (0.68, 0.68, 0.68), (0.32, 0.32, 0.32))
    assert torch.equal(ColourReward("brightness", -1)(x), -ColourReward("brightness")(x))
    near = ColourReward("brightness", target=0.5)(x)
    assert near.tolist() == pytest.approx([0, 0.05 - 1.0025**0.5, 0.05 - 1.0025**0.5], abs=1e-4)


def test_an_unknown_property_or_direction_is_refused_with_what_there_is() -> None:
    with pytest.raises(RewardError, match="brightness"):
        ColourReward("beauty")
    with pytest.raises(RewardError, match="direction"):
        ColourReward("contrast", 0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 8, 8), (2, 8, 8, 3)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RewardError, match=r"\(B,3,H,W\)"):
        ColourReward("brightness")(torch.rand(shape))


def test_one_prompt_a_picture_or_none() -> None:
    with pytest.raises(RewardError, match="2 pictures but 1 prompts"):
        ColourReward("brightness")(pictures(2), ["a"])


def test_scores_are_fp32_under_autocast_and_for_half_precision_pictures() -> None:
    x = pictures(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ColourReward("contrast")(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, ColourReward("contrast")(x))
    assert ColourReward("contrast")(x.half()).dtype == torch.float32


def test_a_batch_scores_as_its_pictures_one_by_one() -> None:
    x, reward = pictures(4), CombinedReward([taste(MeanEncoder()), ColourReward("warmth")], [1, 2])
    single = torch.cat([reward(one[None]) for one in x])
    assert torch.allclose(reward(x), single, atol=1e-6)


def test_a_combination_is_the_weighted_sum_and_runs_each_encoder_once() -> None:
    """2 * taste - .5 * second taste + 3 * brightness; both tastes share an encoder id, so it runs once a batch."""
    encoder, x = MeanEncoder(), pictures()
    parts: list[Reward] = [taste(encoder), taste(encoder, 0.0), ColourReward("brightness")]
    by_hand = 2 * parts[0](x) - 0.5 * parts[1](x) + 3 * parts[2](x)
    encoder.runs = 0
    combined = CombinedReward(parts, [2, -0.5, 3])
    assert torch.allclose(combined(x), by_hand, atol=1e-5)
    assert encoder.runs == 1
    assert len(combined.encoders) == 1 and combined.networks() == [encoder.network]


def test_nested_combinations_still_run_the_encoder_once() -> None:
    encoder = MeanEncoder()
    inner = CombinedReward([taste(encoder), ColourReward("warmth")], [1, 1])
    CombinedReward([inner, taste(encoder)], [1, 1])(pictures())
    assert encoder.runs == 1


def test_encoders_with_other_ids_are_not_confused() -> None:
    first, second = MeanEncoder("a"), MeanEncoder("b")
    embed = embed_once(pictures())
    embed(first), embed(second), embed(first)
    assert (first.runs, second.runs) == (1, 1)


def test_a_combination_of_nothing_or_with_missing_weights_is_refused() -> None:
    with pytest.raises(RewardError, match="at least one"):
        CombinedReward([], [])
    with pytest.raises(RewardError, match="2 rewards but 1 weights"):
        CombinedReward([ColourReward("warmth"), ColourReward("contrast")], [1])


def test_a_taste_is_mean_less_caution_times_std() -> None:
    """Flat (r, g, b): mean 2 r, std 3 b (root of 9 b^2 + 1e-6)."""
    x = flat((0.5, 0.1, 0.2))
    assert float(taste(MeanEncoder())(x)) == pytest.approx(1.0 - 0.6, abs=1e-5)
    assert float(taste(MeanEncoder(), 0.0)(x)) == pytest.approx(1.0, abs=1e-6)


def test_a_taste_pulls_on_every_pixel_with_the_slope_of_its_formula() -> None:
    """d(2 r - 3 b)/d pixel: 2/256 for red, 0 for green, -3/256 for blue on a flat 16 x 16 picture."""
    x = flat((0.5, 0.1, 0.2)).requires_grad_()
    (gradient,) = torch.autograd.grad(taste(MeanEncoder())(x).sum(), x)
    assert gradient[0, :, 0, 0].tolist() == pytest.approx([2 / 256, 0, -3 / 256], abs=1e-6)


def test_a_saved_reward_scores_bit_for_bit_as_before(tmp_path: Path) -> None:
    encoder, x = MeanEncoder(), pictures()
    for name, reward in {
        "t": taste(encoder, 0.7),
        "c": ColourReward("warmth", -1),
        "g": ColourReward("contrast", target=0.2),
    }.items():
        save_reward(reward, tmp_path / f"{name}.safetensors")
        loaded = load_reward(tmp_path / f"{name}.safetensors", [encoder])
        assert torch.equal(loaded(x), reward(x)) and loaded.name == reward.name


def test_a_taste_refuses_another_encoder_and_says_which_it_wants(tmp_path: Path) -> None:
    save_reward(taste(MeanEncoder("clip-right")), tmp_path / "t.safetensors")
    with pytest.raises(RewardError, match="clip-right.*clip-wrong"):
        load_reward(tmp_path / "t.safetensors", [MeanEncoder("clip-wrong")])
    with pytest.raises(RewardError, match="connect that CLIP_VISION"):
        load_reward(tmp_path / "t.safetensors")


def test_nothing_is_overwritten_and_no_draft_is_left(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_reward(ColourReward("warmth"), path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        save_reward(ColourReward("contrast"), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_combination_says_that_it_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="one"):
        save_reward(CombinedReward([ColourReward("warmth")], [1]), tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


def damaged(path: Path, change: dict[str, object], tensors: dict[str, Tensor] | None = None) -> Path:
    from safetensors.torch import load_file, save_file

    save_reward(taste(MeanEncoder()), path)
    header, kept = read_header(path) | change, tensors or load_file(path)
    path.unlink()
    save_file(kept, path, metadata={HEADER: json.dumps(header)})
    return path


NO_NUMBERS = {name: torch.full((6, 1) if name == "root" else (6,), float("nan")) for name in TENSORS}
MISSHAPEN = {name: torch.ones((6, 1) if name == "root" else (5,) if name == "scale" else (6,)) for name in TENSORS}


@pytest.mark.parametrize(
    ("change", "tensors", "says"),
    [
        ({"format": 99}, None, "another version"),
        ({"kind": "__import__"}, None, "another version"),
        ({"settings": {}}, None, "damaged"),
        ({}, {"weight": torch.ones(6)}, "damaged"),
        ({}, NO_NUMBERS, "no numbers"),
        ({}, MISSHAPEN, "damaged"),
    ],
)
def test_a_damaged_file_is_refused_by_a_sentence(tmp_path: Path, change, tensors, says: str) -> None:
    path = damaged(tmp_path / "x.safetensors", change, tensors)
    with pytest.raises(RewardError, match=says):
        load_reward(path, [MeanEncoder()])


def test_a_file_that_is_no_reward_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "note.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(RewardError, match=r"note\.safetensors holds no reward"):
        load_reward(tmp_path / "note.safetensors")


def test_a_combination_passes_on_the_warning_of_a_weak_taste() -> None:
    weak = taste(MeanEncoder())
    weak.warning = "This taste is weak."
    assert CombinedReward([weak, ColourReward("warmth")], [1, 1]).warning == "This taste is weak."
