"""Combinations on one scale and a schedule, rewards of a region, hues and palettes: numbers derived by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from feedback_loop.feedback.rewards.base import Reward, RewardError
from feedback_loop.feedback.rewards.colour import PROPERTIES, ColourReward
from feedback_loop.feedback.rewards.combine import HOW, CombinedReward, Scale, scale_of
from feedback_loop.feedback.rewards.files import load_reward, save_reward
from feedback_loop.feedback.rewards.hues import HUES, PaletteReward, hue_amount, oklab, parse_colours
from feedback_loop.feedback.rewards.mask import MaskReward, box_of
from feedback_loop.tests.feedback.slopes import slopes


class Channel(Reward):
    """Mean of one channel."""

    def __init__(self, channel: int, differentiable: bool = True) -> None:
        self.channel, self.name, self.differentiable = channel, f"channel {channel}", differentiable

    def score(self, images, prompts, embed):
        return images[:, self.channel].mean(dim=(1, 2))


def flat(*colour: float, side: int = 16) -> Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, side, side).clone()


def pictures(n: int = 3, seed: int = 0) -> Tensor:
    return 0.1 + 0.8 * torch.rand(n, 3, 24, 20, generator=torch.Generator().manual_seed(seed))


RED, GREEN = Channel(0), Channel(1)
SCALES = [Scale(0.5, 0.1), Scale(0.2, 0.4)]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", 2 * 1.0 + 1 * -0.25),
        ("minimum", min(2 * 1.0, 1 * -0.25)),
        ("product", 2 * math.log(1 / (1 + math.exp(-1))) + math.log(1 / (1 + math.exp(0.25)))),
    ],
)
def test_each_reward_counts_in_deviations_from_its_mean(how: str, expected: float) -> None:
    """(.6, .1, 0): z = (.6 - .5)/.1 = 1 and (.1 - .2)/.4 = -.25; weights 2 and 1."""
    reward = CombinedReward([RED, GREEN], [2, 1], how, SCALES)
    assert float(reward(flat(0.6, 0.1, 0.0))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("how", HOW)
def test_every_combination_has_the_slope_of_its_formula(how: str) -> None:
    """Away from where the minimum changes hands; fp32, h = 1e-2."""
    reward = CombinedReward([RED, GREEN, ColourReward("contrast")], [1, 2, 0.5], how)
    by_autograd, by_hand = slopes(reward, pictures(), 1e-2)
    assert by_autograd == pytest.approx(by_hand, rel=2e-2)


def test_the_minimum_pulls_at_the_worst_reward_alone_picture_by_picture() -> None:
    """Green is worse in the first picture and red in the second: each has a slope in that channel only."""
    x = torch.cat([flat(0.9, 0.1, 0.0), flat(0.1, 0.9, 0.0)]).requires_grad_()
    (gradient,) = torch.autograd.grad(CombinedReward([RED, GREEN], [1, 1], "minimum")(x).sum(), x)
    assert (gradient.abs().sum(dim=(2, 3)) > 0).tolist() == [[False, True, False], [True, False, False]]


def test_what_is_not_worth_steering_for_shrinks_with_the_scale() -> None:
    """A change of .001 in a reward of deviation .1 and weight 2 is one of .02 in the sum."""
    assert CombinedReward([RED], [2], scales=[Scale(0.0, 0.1)]).negligible == pytest.approx(0.02)


def test_a_combination_reaches_as_far_as_the_part_of_least_reach_that_counts() -> None:
    short = Channel(0)
    short.reach = 0.6
    assert CombinedReward([RED, short], [1, 1]).reach == 0.6
    assert CombinedReward([RED, short], [1, 0]).reach == 1.0


def test_a_combination_is_refused_for_settings_that_do_not_fit() -> None:
    with pytest.raises(RewardError, match="no combination 'maximum'; choose one of sum"):
        CombinedReward([RED], [1], "maximum")
    with pytest.raises(RewardError, match="positive weights only"):
        CombinedReward([RED, GREEN], [1, -1], "minimum")
    with pytest.raises(RewardError, match="one scale and one part"):
        CombinedReward([RED, GREEN], [1, 1], "sum", [Scale()])


def test_the_scale_is_the_mean_and_deviation_of_the_scores() -> None:
    """1, 2, 3: mean 2, deviation 1 (with the correction for few)."""
    assert scale_of([1.0, 2.0, 3.0], "x") == Scale(2.0, 1.0)
    for scores in ([1.0, 1.0], [1.0], [1.0, float("nan")]):
        with pytest.raises(RewardError, match="alike.*pictures that differ"):
            scale_of(scores, "x")


def test_a_schedule_leaves_out_what_does_not_count_at_that_part_of_a_run() -> None:
    """Red counts in 0-.4, green in .3-1: red alone at .1, both at .35, green alone at .9; a whole picture by both."""
    reward = CombinedReward([RED, GREEN], [1, 10], spans=[(0.0, 0.4), (0.3, 1.0)])
    x = flat(0.5, 0.2, 0.0)
    found = [float(now(x)) for percent in (0.1, 0.35, 0.9) if (now := reward.at(percent)) is not None]
    assert found == pytest.approx([0.5, 2.5, 2.0])
    assert float(reward(x)) == pytest.approx(2.5) and reward.at(0.35) is reward


def test_a_schedule_with_a_gap_says_that_nothing_counts_there() -> None:
    inner = CombinedReward([RED], [1], spans=[(0.0, 0.2)])
    assert inner.at(0.5) is None
    assert CombinedReward([inner], [1]).at(0.5) is None
    assert MaskReward(inner, (0.0, 0.0, 1.0, 1.0)).at(0.5) is None
    kept = CombinedReward([inner, GREEN], [1, 2]).at(0.5)
    assert kept is not None and float(kept(flat(0.5, 0.2, 0.0))) == pytest.approx(0.4)
    assert RED.at(0.5) is RED


# --- regions ---------------------------------------------------------------------------------------------------------


def test_the_box_is_that_of_the_mask_grown_about_its_middle_and_cut_at_the_edge() -> None:
    """20 x 40: rows 4..8 and columns 0..8. Grown by 1.25: rows 3.5..8.5 of 20, columns -1..9 of 40, cut at 0."""
    mask = torch.zeros(20, 40)
    mask[4:8, 0:8] = 1
    assert box_of(mask) == pytest.approx((3.5 / 20, 0.0, 8.5 / 20, 9 / 40))
    assert box_of(mask, 1.0) == pytest.approx((4 / 20, 0.0, 8 / 20, 8 / 40))


def test_several_masks_count_together_and_an_empty_one_is_refused() -> None:
    masks = torch.zeros(2, 10, 10)
    masks[0, 0, 0] = masks[1, 9, 9] = 1
    assert box_of(masks, 1.0) == (0.0, 0.0, 1.0, 1.0)
    with pytest.raises(RewardError, match="empty: paint white"):
        box_of(torch.full((10, 10), 0.5))


def test_a_reward_in_a_region_sees_the_crop_at_any_size_and_pulls_nowhere_else() -> None:
    """The left half red, the right half black: in the box of the left half the mean red is 1 at every size."""
    reward = MaskReward(RED, (0.0, 0.0, 1.0, 0.5))
    for side in (16, 32, 50):
        x = torch.zeros(1, 3, side, side)
        x[:, 0, :, : side // 2] = 1
        x.requires_grad_()
        score = reward(x)
        (gradient,) = torch.autograd.grad(score.sum(), x)
        assert float(score.detach()) == pytest.approx(1.0)
        assert gradient[..., : side // 2][:, 0].abs().min() > 0 and not gradient[..., side // 2 :].any()


def test_a_tiny_region_is_seen_with_eight_pixels_at_least_and_one_beyond_the_picture_too() -> None:
    for box in ((0.5, 0.5, 0.5, 0.5), (0.99, 0.99, 1.0, 1.0), (0.0, 0.0, 0.01, 0.01)):
        assert MaskReward(RED, box).crop(torch.zeros(1, 3, 64, 48)).shape[-2:] == (8, 8)
    assert MaskReward(RED, (0.0, 0.0, 0.1, 0.1)).crop(torch.zeros(1, 3, 4, 6)).shape[-2:] == (4, 6)


def test_a_reward_in_a_region_passes_on_what_is_known_of_it() -> None:
    plain = Channel(0, differentiable=False)
    plain.warning, plain.negligible, plain.reach = "careful", 0.7, 0.6
    inside = MaskReward(plain, (0.0, 0.0, 1.0, 1.0))
    assert (inside.differentiable, inside.warning, inside.negligible, inside.reach) == (False, "careful", 0.7, 0.6)
    assert inside.parts == (plain,)


# --- hues and palettes -----------------------------------------------------------------------------------------------

NAMED = {
    "red": (1.0, 0, 0), "orange": (1.0, 0.5, 0), "yellow": (1.0, 1, 0), "green": (0.0, 0.6, 0), "cyan": (0.0, 1, 1),
    "blue": (0.0, 0, 1), "purple": (0.5, 0, 0.5), "pink": (1.0, 0.4, 0.7),
}  # fmt: skip


def test_oklab_has_its_published_white_red_and_blue() -> None:
    """Ottosson 2020: white (1, 0, 0), red (.628, .225, .126), blue (.452, -.032, -.312)."""
    for colour, lab in (("white", (1, 0, 0)), ("red", (0.628, 0.225, 0.126)), ("blue", (0.452, -0.032, -0.312))):
        shown = {"white": (1.0, 1.0, 1.0)} | NAMED
        assert oklab(flat(*map(float, shown[colour]), side=1)).flatten().tolist() == pytest.approx(lab, abs=2e-3)


@pytest.mark.parametrize("hue", HUES)
def test_a_colour_counts_most_for_its_own_hue_and_grey_for_none(hue: str) -> None:
    amounts = {name: float(hue_amount(flat(*colour), hue)) for name, colour in NAMED.items()}
    assert max(amounts, key=lambda name: amounts[name]) == hue and amounts[hue] > 0.15
    assert sorted(amounts.values())[-2] < 0.3 * amounts[hue]
    assert abs(float(hue_amount(flat(0.5, 0.5, 0.5), hue))) < 0.02


@pytest.mark.parametrize("hue", HUES)
def test_a_hue_has_a_slope_in_black_white_and_grey_pictures_too(hue: str) -> None:
    for level in (0.0, 0.04045, 0.5, 1.0):
        x = flat(level, level, level).requires_grad_()
        (gradient,) = torch.autograd.grad(hue_amount(x, hue).sum(), x)
        assert gradient.isfinite().all()
        assert gradient.any() or level == 0.0


@pytest.mark.parametrize("measure", [*(f"amount of {hue}" for hue in HUES), "palette"])
def test_the_gradient_of_hues_and_palettes_is_their_slope(measure: str) -> None:
    """Central difference in double precision, h = 1e-6, away from black, where the cube root is steep."""
    palette = PaletteReward([(0.1, 0.4, 0.5), (0.9, 0.8, 0.3)])
    function = palette.distance if measure == "palette" else PROPERTIES[measure][0]
    by_autograd, by_hand = slopes(function, pictures().double(), 1e-6)
    assert by_autograd == pytest.approx(by_hand, rel=1e-4, abs=1e-9)


def test_a_palette_is_nearest_where_all_of_its_colours_are_there_and_no_other() -> None:
    """Both halves: every pixel and every colour at distance sqrt(1e-6) = .001. One colour alone leaves the other out:
    half of its distance, for the two directions are averaged."""
    dark, light = (0.1, 0.2, 0.6), (0.9, 0.8, 0.3)
    palette = PaletteReward([dark, light])
    both = torch.cat([flat(*dark), flat(*light)], dim=3)
    assert float(palette.distance(both)) < 0.003
    apart = float((oklab(flat(*dark, side=1)) - oklab(flat(*light, side=1))).norm())
    assert float(palette.distance(flat(*dark))) == pytest.approx(apart / 4, rel=0.02)
    grey = float(palette(flat(0.5, 0.5, 0.5)))
    assert float(palette(both)) > float(palette(flat(*dark))) > grey
    assert float(PaletteReward([dark, light], -1)(both)) == pytest.approx(-float(palette(both)), abs=1e-6)


def test_colours_are_read_as_web_pages_write_them() -> None:
    assert parse_colours("#ff0000, 0f8;  #000") == [
        (1.0, 0.0, 0.0),
        (0.0, 1.0, pytest.approx(0x88 / 255)),
        (0.0, 0.0, 0.0),
    ]
    for text in ("", "  ", "red", "#12345", "#ff0000 and blue", ",".join(["#fff"] * 17)):
        with pytest.raises(RewardError, match="1 to 16 colours"):
            parse_colours(text)


def test_a_saved_palette_scores_as_before(tmp_path: Path) -> None:
    palette = PaletteReward(parse_colours("#1f6f8b, #f2c14e"), -1)
    save_reward(palette, tmp_path / "p.safetensors")
    loaded = load_reward(tmp_path / "p.safetensors")
    assert torch.equal(loaded(pictures()), palette(pictures())) and loaded.name == "far from #1f6f8b, #f2c14e"
