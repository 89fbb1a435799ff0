"""Masks from marks, crops and pasting, with numbers that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from feedback_loop.guidance.regions import (
    Crop,
    RegionError,
    box,
    combined,
    crop_around,
    disc,
    feathered,
    fitted,
    grown,
    lab,
    matched,
    painted,
    polygon,
    progressive,
    ranked,
    scored_inside,
    seam,
    snapped,
)


def test_a_point_grows_to_a_circle_in_fractions_of_the_shorter_side():
    """Radius .25 of 20 pixels is 5: pi * 25 = 78.5 pixels, to the rounding of a circle on a grid."""
    mask = disc((0.5, 0.5), 0.25, 20, 40)
    assert mask.shape == (20, 40) and mask.sum() == pytest.approx(78.5, rel=0.06)
    assert mask[9:11, 19:21].all() and mask[:, :14].sum() == 0
    assert disc((0.0, 0.0), 0.0, 20, 20).sum() >= 1 and disc((1.0, 1.0), 0.0, 20, 20).sum() >= 1


def test_a_box_takes_every_pixel_that_it_touches_whichever_corner_comes_first():
    mask = box((0.25, 0.5), (0.5, 1.0), 8, 16)
    assert mask.sum() == 4 * 4 and mask[4:, 4:8].all()
    assert np.array_equal(box((0.5, 1.0), (0.25, 0.5), 8, 16), mask)
    assert box((0.5, 0.5), (0.501, 0.501), 8, 8).sum() == 1
    assert box((0.0, 0.0), (1.0, 1.0), 8, 8).all()


def test_a_polygon_is_filled():
    """A right triangle over half of a square of 20 x 20 pixels, its edge included: about 200."""
    assert polygon([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)], 20, 20).sum() == pytest.approx(200, rel=0.1)


def test_a_brush_mask_of_another_size_is_fitted():
    mask = np.zeros((10, 10), np.uint8)
    mask[:, :5] = 255
    assert np.array_equal(painted(mask, 10, 10), mask / 255)
    assert painted(mask, 20, 40).mean() == pytest.approx(0.5, abs=0.02)


def scene():
    """A red square of 10 x 10 pixels with a hole in it, on grey."""
    pixels = np.full((40, 40, 3), 128, np.uint8)
    pixels[10:20, 10:20] = (200, 30, 30)
    pixels[14:16, 14:16] = 128
    return pixels


def test_a_point_snaps_to_the_object_under_it_with_its_holes_and_its_edge():
    """10 x 10 and one pixel around it: 100 + 4 * 10."""
    mask = snapped((0.29, 0.29), scene(), 20, 0.1)
    assert mask.sum() == 140 and mask[10:20, 10:20].all() and mask[14, 14] == 1


def test_a_point_on_the_ground_stays_a_circle():
    assert np.array_equal(snapped((0.8, 0.8), scene(), 20, 0.1), disc((0.8, 0.8), 0.1, 40, 40))


def test_colours_are_compared_in_lab():
    """White is (100, 0, 0), black (0, 0, 0); pure red is (53.2, 80.1, 67.2)."""
    colours = lab(np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0]]], np.uint8))[0]
    np.testing.assert_allclose(colours, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.2]], atol=0.1)


def test_raters_combine_by_union_or_by_majority():
    """Three raters mark 0-3, 2-5 and 2-3 of six pixels (the first in two pieces): all, and 2-3."""

    def row(*places):
        mask = np.zeros((1, 6), np.float32)
        mask[0, list(places)] = 1
        return mask

    marks = {"ann": [row(0, 1), row(2, 3)], "bob": [row(2, 3, 4, 5)], "cem": [row(2, 3)], "dan": []}
    assert np.array_equal(combined(marks, "union"), row(0, 1, 2, 3, 4, 5))
    assert np.array_equal(combined(marks, "majority"), row(2, 3))
    assert np.array_equal(combined({"ann": [row(1)]}, "majority"), row(1))
    assert combined({"ann": []}, "union") is None


def square(size=20, start=8, end=12):
    mask = torch.zeros(1, size, size)
    mask[:, start:end, start:end] = 1
    return mask


def test_growing_by_2_adds_two_pixels_on_each_side_and_shrinking_takes_them_off():
    """4 x 4 by 2: four sides of 4 x 2, and in each corner the 3 pixels within a radius of 2 of it."""
    assert grown(square(), 2).sum() == 16 + 4 * 8 + 4 * 1
    assert grown(square(20, 5, 15), -2)[0].nonzero().min() == 7
    assert torch.equal(grown(square(), 0), square())


def test_a_feather_rises_inside_the_mask_and_leaves_what_is_outside_at_zero():
    mask = square(40, 10, 30)
    soft = feathered(mask, 4)
    assert (soft[mask == 0] == 0).all() and soft[0, 20, 20] == 1
    edge = soft[0, 20, 10:16].tolist()
    assert edge == pytest.approx([0.043, 0.316, 0.684, 0.957, 1, 1], abs=0.001)  # 3x^2 - 2x^3 at 1/8, 3/8, 5/8, 7/8
    assert torch.equal(feathered(mask, 0), mask) and torch.equal(feathered(torch.ones(1, 9, 9), 4), torch.ones(1, 9, 9))
    assert torch.equal(feathered(mask / 2, 4), soft / 2)


def test_a_feather_does_not_fade_a_mask_at_the_edge_of_the_picture():
    mask = torch.zeros(1, 20, 20)
    mask[:, :, :10] = 1
    soft = feathered(mask, 3)
    assert soft[0, 10, 0] == pytest.approx(1, abs=1e-5)


def test_a_crop_has_context_and_the_size_that_the_model_likes():
    """4 x 4 pixels with one extent around are 12 x 12, but a model for 64 pixels gets 64 x 64 of a large picture."""
    mask = square(200, 100, 104)[0]
    crop = crop_around(mask, 1.0, 64)
    assert (crop.height, crop.width, crop.to_height, crop.to_width) == (64, 64, 64, 64)
    assert crop.top <= 100 - 30 + 1 and crop.top + crop.height >= 104 + 29


def test_a_zoom_of_4_takes_a_smaller_part_and_makes_it_larger():
    crop = crop_around(square(200, 100, 104)[0], 1.0, 64, zoom=4.0)
    assert (crop.height, crop.width, crop.to_height, crop.to_width) == (16, 16, 64, 64)


def test_a_crop_stays_within_the_picture():
    mask = torch.zeros(30, 50)
    mask[0:3, 47:50] = 1
    crop = crop_around(mask, 2.0, 64)
    assert crop == Crop(0, 0, 30, 50, 32, 48)


def test_a_region_larger_than_the_model_likes_loses_at_most_a_third_of_its_size():
    crop = crop_around(torch.ones(400, 400), 0.5, 64)
    assert (crop.height, crop.width) == (400, 400)
    assert crop.to_height == crop.to_width == round(400 / 1.5 / 16) * 16


def test_an_empty_mask_is_refused_in_a_sentence():
    with pytest.raises(RegionError, match="empty.*Mark a place"):
        crop_around(torch.zeros(8, 8), 1.0, 8)


@pytest.mark.parametrize("zoom", [1.0, 4.0])
def test_pasting_leaves_every_pixel_outside_of_the_mask_bit_equal(zoom):
    images = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(50, 70)
    mask[20:30, 40:55] = 1
    crop = crop_around(mask, 0.5, 32, zoom)
    part = 1 - crop.take(images)
    soft = feathered(mask[None], 2)[:, None]
    pasted = crop.paste(images, crop.put(part), soft)
    outside = (mask == 0).expand_as(images)
    assert torch.equal(pasted[outside], images[outside])
    assert (pasted != images)[..., 23:27, 44:50].any()


def test_taking_and_putting_back_unchanged_changes_nothing_at_the_same_size():
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = square(64, 20, 30)[0]
    crop = crop_around(mask, 0.5, 32)
    assert (crop.height, crop.to_height) == (32, 32)
    assert torch.equal(crop.paste(images, crop.put(crop.take(images)), mask[None, None]), images)


def test_a_shift_of_colours_around_the_mask_is_taken_off_inside():
    """All of the part is .1 too bright; around the mask that is known, and inside it is taken off."""
    old = torch.full((1, 3, 20, 20), 0.4)
    part = old + 0.1
    part[..., 8:12, 8:12] = 0.8
    result = matched(part, old, square()[:, None])
    torch.testing.assert_close(result[..., 9, 9], torch.full((1, 3), 0.7))
    assert torch.equal(matched(part, old, torch.ones(1, 1, 20, 20)), part)


def test_a_shift_that_is_another_in_every_corner_is_taken_off_as_such():
    """A ramp of .1 from left to right: taken off to .005 where it is known beside, to .01 in the middle; a mean over
    the surroundings would leave .02 at either edge. What differs by .6 is no shift, and pulls by .3 at most."""
    old = torch.full((1, 3, 64, 64), 0.4)
    ramp = torch.linspace(0, 0.1, 64).expand(1, 3, 64, 64)
    mask = square(64, 20, 44)[:, None]
    left = (matched(old + ramp, old, mask) - old)[..., 20:44, 20:44].abs()
    assert left.max() < 0.01 and left[..., (0, -1)].max() < 0.005
    assert (ramp[..., 20:44, 20:44] - 0.05).abs().max() > 0.018
    part = old.clone()
    part[..., 15:20, 20:44] += 0.6
    assert 0.2 < (old - matched(part, old, mask))[..., 20, 25:40].mean() <= 0.3
    assert (old - matched(part, old, mask))[..., 43, 25:40].abs().max() < 0.04


def test_a_mask_over_a_crop_is_as_large_as_the_crop():
    assert fitted(square(), 40, 10).shape == (1, 40, 10)
    assert fitted(square(), 40, 40).mean() == pytest.approx(16 / 400, rel=0.02)


def test_differential_diffusion_frees_the_wholly_marked_first():
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert progressive(mask, 1.0).tolist() == [0, 0, 0, 1]
    assert progressive(mask, 0.5).tolist() == [0, 0, 1, 1]
    assert progressive(mask, 0.0).tolist() == [0, 1, 1, 1]


def test_candidates_are_ranked_best_first_and_equal_ones_keep_their_order():
    assert ranked([0.1, 0.5, 0.1, 0.9]) == [3, 1, 0, 2]


def test_a_reward_sees_the_region_alone():
    """The mean of the marked 4 x 4 pixels with no padding is 1, of the whole picture .04; padding 1 shows 12 x 12."""
    images = square()[:, None].expand(1, 3, 20, 20)
    mean = lambda part: part.mean(dim=(1, 2, 3)).tolist()  # noqa: E731
    assert scored_inside(mean, images, square()[0], 0.0) == [1.0]
    assert scored_inside(mean, images, square()[0], 1.0) == pytest.approx([16 / 144])


def test_a_seam_shows_in_the_gradient_across_the_edge():
    smooth = torch.linspace(0, 1, 20).expand(3, 20, 20).clone()
    across, beside = seam(smooth, square()[0])
    assert across == pytest.approx(beside, rel=0.35)
    smooth[:, 8:12, 8:12] += 0.5
    across, beside = seam(smooth, square()[0])
    assert across > 5 * beside
