"""Masks from marks in the store, and marked places made anew by tiny models with ComfyUI's own samplers."""

from __future__ import annotations

import uuid

import comfy.model_management
import comfy.samplers
import comfy.supported_models
import pytest
import torch

from feedback_loop.feedback import refinements
from feedback_loop.feedback.marks import Region
from feedback_loop.feedback.media import encode_png
from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.guidance.regions import RegionError
from feedback_loop.guidance.text import moved
from feedback_loop.nodes.compat import store
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.recording import pictures_of
from feedback_loop.nodes.refine import FeedbackRefineRegion
from feedback_loop.nodes.refining import freed, liked_size, takes_masked_pictures
from feedback_loop.nodes.region_mask import FeedbackRegionMask
from feedback_loop.tests.nodes import tiny_models


class Brightness(Reward):
    name = "brightness"

    def score(self, images, prompts, embed):
        self.seen = images.shape
        return images.mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def parts():
    with torch.inference_mode():
        return tiny_models.sd15(), tiny_models.vae(), tiny_models.clip()


def picture(seed=0, size=64):
    """On the grid of 8-bit values, as every picture that was captured."""
    made = torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(seed))
    return (made * 255).round() / 255


def square(size=64, start=20, end=40):
    mask = torch.zeros(1, size, size)
    mask[:, start:end, start:end] = 1
    return mask


GIVEN = {
    "positive": tiny_models.conditioning("sd15", 1), "negative": tiny_models.conditioning("sd15", 2), "seed": 5,
    "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "candidates": 2,
    "collection": "",
}  # fmt: skip


def refine(parts, images, mask, **changed):
    model, vae, _ = parts
    return FeedbackRefineRegion.execute(images=images, mask=mask, model=model, vae=vae, **(GIVEN | changed)).args


def captured(image, collection):
    return store().add_image(pictures_of(image)[0], Generation(prompt="two stars"), collection)


@pytest.fixture
def collection():
    return f"refined {uuid.uuid4()}"


def mask_of(images, **changed):
    given = {"labels": "", "points": "circle", "radius": 10.0, "grow": 0, "feather": 0.0}
    return FeedbackRegionMask.execute(images, **(given | changed)).args


def test_marks_of_a_captured_picture_become_a_mask(collection):
    """A box over a quarter of each side and a point of radius 10 %: 16 x 16 pixels and a circle of 6.4 pixels."""
    image = picture(1)
    id_ = captured(image, collection)
    store().add_region(Region(id_, "rect", ((0.25, 0.25), (0.5, 0.5)), "watermark", "ann", comment="no text"))
    store().add_region(Region(id_, "point", ((0.8, 0.8),), "artifact", "ann", comment="a round star"))
    mask, comment, labels, count = mask_of(image, collection=collection)
    assert mask.shape == (1, 64, 64) and count == 2
    assert (comment, labels) == ("no text, a round star", "watermark, artifact")
    assert mask[0, 16:32, 16:32].all() and mask.sum() == pytest.approx(256 + 3.14 * 6.4**2, rel=0.03)
    box, comment, labels, count = mask_of(image, collection=collection, labels="Watermark")
    assert (box.sum(), comment, labels, count) == (256, "no text", "watermark", 1)


def test_a_mark_that_was_taken_back_or_made_by_somebody_else_does_not_count(collection):
    image = picture(2)
    id_ = captured(image, collection)
    back = store().add_region(Region(id_, "rect", ((0.0, 0.0), (0.5, 0.5)), "artifact", "ann"))
    before = FeedbackRegionMask.fingerprint_inputs()
    store().undo(back)
    assert FeedbackRegionMask.fingerprint_inputs() != before
    store().add_region(Region(id_, "rect", ((0.5, 0.5), (1.0, 1.0)), "artifact", "bob"))
    assert mask_of(image, collection=collection)[0].sum() == 32 * 32
    assert mask_of(image, collection=collection, raters="ann")[3] == 0


def test_several_raters_agree_by_union_or_majority(collection):
    """Left half, whole, right three quarters: union is all of it, and more than half of three mark the right of the
    middle (bob and cem) and the second quarter (all)."""
    image = picture(3)
    id_ = captured(image, collection)
    for rater, left, right in (("ann", 0.0, 0.5), ("bob", 0.0, 1.0), ("cem", 0.25, 1.0)):
        store().add_region(Region(id_, "rect", ((left, 0.0), (right, 1.0)), "artifact", rater))
    assert mask_of(image, collection=collection)[0].mean() == 1
    assert mask_of(image, collection=collection, combine="majority")[0].mean() == 1
    store().add_region(Region(id_, "rect", ((0.0, 0.0), (0.1, 0.1)), "artifact", "dan"))
    most = mask_of(image, collection=collection, combine="majority")[0]
    assert most[..., 16:32].all() and most[0, 32:, :16].sum() == 0


def test_a_point_snaps_to_the_object_and_a_brush_is_taken_as_it_is(collection):
    image = torch.full((1, 64, 64, 3), 128 / 255)
    image[:, 30:40, 30:40] = torch.tensor([200, 30, 30]) / 255
    id_ = captured(image, collection)
    point = store().add_region(Region(id_, "point", ((0.55, 0.55),), "artifact", "ann"))
    assert mask_of(image, collection=collection, points="snap")[0].sum() == 140
    store().undo(point)
    brush = torch.zeros(64, 64, dtype=torch.uint8)
    brush[:10] = 255
    store().add_region(Region(id_, "mask", (), "artifact", "ann", mask=encode_png(brush.numpy())))
    mask = mask_of(image, collection=collection)[0]
    assert mask[:, :10].all() and mask[:, 10:].sum() == 0
    assert mask_of(image, collection=collection, grow=3)[0][:, :13].all()
    assert mask_of(image, collection=collection, feather=3.0)[0][0, 9, 32] < 0.5


def test_a_picture_without_marks_gives_a_black_mask(collection):
    assert mask_of(picture(4), collection=collection)[0].sum() == 0
    assert mask_of(picture(4), collection=collection, grow=-5)[0].sum() == 0


@pytest.mark.parametrize("inpaint", ["differential", "mask"])
def test_outside_of_the_mask_every_pixel_is_bit_equal_and_inside_it_is_new(parts, inpaint, inference_mode):
    image, mask = picture(), square()
    best, every, ids = refine(parts, image, mask, inpaint=inpaint)
    outside = (mask == 0)[0]
    assert every.shape == (2, 64, 64, 3) and ids == []
    for made in (*best, *every):
        assert torch.equal(made[outside], image[0][outside])
        assert (made != image[0])[25:35, 25:35].any()
    assert not torch.equal(every[0], every[1])


def test_a_candidate_depends_on_its_own_seed_alone(parts, inference_mode):
    """Five candidates go in batches of 4 and 1: the fifth is what a run of its seed alone gives."""
    five = refine(parts, picture(), square(), candidates=5)[1]
    alone = refine(parts, picture(), square(), candidates=1, seed=9)[1]
    torch.testing.assert_close(five[4], alone[0], rtol=1e-3, atol=1e-3)


def test_a_reward_orders_the_candidates_by_the_place_alone(parts, inference_mode):
    """Shown to the reward: the mask's 20 pixels and a quarter of that on either side, 30 x 30."""
    reward = Brightness()
    _, every, _ = refine(parts, picture(), square(), candidates=4, reward=reward)
    light = every[:, 15:45, 15:45].mean(dim=(1, 2, 3)).tolist()
    assert light == sorted(light, reverse=True) and light[0] > light[-1]
    assert reward.seen[-2:] == (30, 30)


def test_a_reward_can_also_steer_the_place(parts, inference_mode):
    class Steep(Brightness):
        def score(self, images, prompts, embed):
            return 1000 * images.mean(dim=(1, 2, 3))

    image, mask = picture(), torch.ones(1, 64, 64)
    plain = refine(parts, image, mask, candidates=1, steps=6, reward=Steep())[0]
    pulled = refine(parts, image, mask, candidates=1, steps=6, reward=Steep(), guidance=1.0)[0]
    assert pulled.mean() > plain.mean()


@pytest.mark.parametrize(
    ("how", "positive", "words"),
    [
        ("the prompt there", "large circle", "large circle"),
        ("added to the prompt", "two stars, large circle", "two stars"),
    ],
)
def test_the_comment_is_the_prompt_of_the_place_or_added_to_it(parts, how, positive, words, inference_mode):
    """As if the conditionings had been written so and turned against the text by hand, to the rounding of float32."""
    model, vae, clip = parts
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    given = {"positive": encode("two stars"), "negative": encode(""), "clip": clip, "prompt": "two stars"}
    plain = refine(parts, picture(), square(), **given)[1]
    said = refine(parts, picture(), square(), comment="a large circle, no text", comment_is=how, **given)[1]
    away = moved(encode(positive), encode(f"{words}, text"), encode(words), -1.0)
    against = moved(encode(""), encode("text"), encode(""), 2.0)
    written = refine(parts, picture(), square(), **given | {"positive": away, "negative": against})[1]
    assert not torch.equal(said, plain)
    torch.testing.assert_close(said, written, rtol=1e-3, atol=2e-3)


def test_every_picture_of_a_batch_is_refined_under_its_own_mask(parts, inference_mode):
    images = torch.cat([picture(1), picture(2)])
    masks = torch.cat([square(), square(start=4, end=12)])
    best, every, _ = refine(parts, images, masks)
    assert best.shape == (2, 64, 64, 3) and len(every) == 4
    for made, image, mask in zip(best, images, masks, strict=True):
        assert torch.equal(made[mask == 0], image[mask == 0]) and not torch.equal(made, image)


def test_a_large_picture_is_cut_to_what_the_model_likes_and_nothing_else_moves(parts, inference_mode):
    image = picture(size=200)
    mask = square(200, 150, 170)
    best, _, _ = refine(parts, image, mask, size=64, zoom=2.0, candidates=1)
    assert best.shape == image.shape and torch.equal(best[0][(mask == 0)[0]], image[0][(mask == 0)[0]])


def test_transparency_is_kept(parts, inference_mode):
    image = torch.cat([picture(), torch.rand(1, 64, 64, 1)], dim=-1)
    best, _, _ = refine(parts, image, square(), candidates=1)
    assert torch.equal(best[..., 3], image[..., 3])


def test_each_round_is_stored_with_its_parent_mask_comment_and_candidates(parts, collection):
    image = picture(7)
    parent = captured(image, collection)
    store().add_region(Region(parent, "rect", ((0.3, 0.3), (0.6, 0.6)), "watermark", "ann"))
    with torch.inference_mode():
        _, every, [round_id] = refine(parts, image, square(), collection=collection, reward=Brightness())
    found = store().ask(lambda c: refinements.round_by_id(c, round_id))
    assert found.parent == parent and found.labels == ("watermark",) and found.settings["steps"] == 2
    assert [one.score for one in found.candidates] == sorted((one.score for one in found.candidates), reverse=True)
    kept = [torch.tensor(store().image_pixels(one.image_id)).float() / 255 for one in found.candidates]
    torch.testing.assert_close(torch.stack(kept), every, rtol=0, atol=1 / 255)
    assert {store().image(one.image_id).generation.seed for one in found.candidates} == {"5", "6"}
    again = store().image(found.candidates[0].image_id)
    assert again.collection == collection


def test_ten_rounds_change_nothing_outside_of_their_masks_and_make_one_tree(parts, collection):
    """Each round goes on with the picture as it lies in the store, 8 bits deep."""
    first = image = picture(8)
    mask = square()
    for round_ in range(10):
        with torch.inference_mode():
            best, _, _ = refine(parts, image, mask, collection=collection, candidates=1, steps=1, seed=round_)
        [id_] = store().ask(lambda c, best=best: refinements.with_pixels(c, _hash(best), collection))
        image = torch.tensor(store().image_pixels(id_))[None].float() / 255
    assert torch.equal(image[0][(mask == 0)[0]], first[0][(mask == 0)[0]])
    family = store().ask(lambda c: refinements.family(c, id_))
    assert len(family.rounds) == 10
    assert all(one.accepted is not None for one in family.rounds[:-1])


def _hash(images):
    from feedback_loop.feedback.media import pixel_hash

    return pixel_hash(pictures_of(images)[0])


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_other_families_of_models_refine_too(kind, inference_mode):
    vae = tiny_models.vae(channels=tiny_models.CHANNELS[kind])
    image, mask = picture(), square()
    best, _, _ = refine(
        (tiny_models.MODELS[kind](), vae, None), image, mask, candidates=1,
        positive=tiny_models.conditioning(kind, 1), negative=tiny_models.conditioning(kind, 2),
    )  # fmt: skip
    assert best.isfinite().all() and torch.equal(best[0][(mask == 0)[0]], image[0][(mask == 0)[0]])


def inpainting_model():
    """SD1.5-inpainting in small: 4 channels of noise, the mask, and 4 of the masked picture."""
    config = comfy.supported_models.SD15(tiny_models._SD15 | {"in_channels": 9})
    return tiny_models._patcher(config, 0)


def test_a_model_made_for_inpainting_sees_the_mask_and_the_masked_picture(parts, inference_mode):
    """What lies under the mask is hidden from it: two pictures that differ only there give the same result, while one
    that differs beside it does not."""
    model, seen = inpainting_model(), []
    assert takes_masked_pictures(model) and not takes_masked_pictures(parts[0])
    model.set_model_unet_function_wrapper(lambda run, args: seen.append(args["c"]["c_concat"]) or run(
        args["input"], args["timestep"], **args["c"]))  # fmt: skip
    image, mask = picture(), square()
    best, _, _ = refine((model, *parts[1:]), image, mask, candidates=1)
    assert torch.equal(best[0][(mask == 0)[0]], image[0][(mask == 0)[0]])
    assert seen[0].shape[1] == 5 and set(seen[0][:, 0].unique().tolist()) == {0.0, 1.0}
    other = image.clone()
    other[:, 25:35, 25:35] = 1 - other[:, 25:35, 25:35]
    refine((model, *parts[1:]), other, mask, candidates=1)
    torch.testing.assert_close(seen[0], seen[-1], rtol=1e-4, atol=1e-4)
    other[:, :5] = 1 - other[:, :5]
    refine((model, *parts[1:]), other, mask, candidates=1)
    assert (seen[0] - seen[-1]).abs().max() > 1e-2


def test_differential_diffusion_is_that_of_comfyui(parts):
    """The same masks as core's node, at every step of a schedule."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    sampling = parts[0].get_model_object("model_sampling")
    inner = type("Inner", (), {"inner_model": type("M", (), {"model_sampling": sampling})})
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 6)
    mask = torch.linspace(0.01, 1, 50)
    options = {"model": inner, "sigmas": sigmas}
    for sigma in sigmas[:-1]:
        theirs = DifferentialDiffusion.forward(sigma[None], mask, options, 1.0)
        assert torch.equal(freed(sigma[None], mask, options), theirs)


def test_a_model_likes_the_size_that_it_was_trained_at(parts):
    assert liked_size(parts[0], (2000, 1500)) == 512 and liked_size(parts[0], (64, 48)) == 64
    assert liked_size(tiny_models.sdxl(), (2000, 1500)) == 1024 and liked_size(tiny_models.flux(), (2000, 9)) == 1024


def test_pictures_in_which_nothing_is_marked_pass_as_they_are(parts, inference_mode):
    """Of two, the first has no mark: two candidates, of the second alone. Of one without a mark: the picture itself."""
    images = torch.cat([picture(1), picture(2)])
    best, every, _ = refine(parts, images, torch.cat([torch.zeros(1, 64, 64), square()]))
    assert torch.equal(best[0], images[0]) and not torch.equal(best[1], images[1]) and len(every) == 2
    result = FeedbackRefineRegion.execute(
        images=images[:1], mask=torch.zeros(1, 64, 64), model=parts[0], vae=parts[1], **GIVEN
    )
    assert torch.equal(result.args[0], images[:1]) and torch.equal(result.args[1], images[:1]) and result.args[2] == []
    assert "Nothing is marked" in result.ui["text"][0]


def test_mistakes_are_said_in_sentences(parts, inference_mode):
    with pytest.raises(RegionError, match="32 x 32 pixels, the picture 64 x 64"):
        refine(parts, picture(), torch.ones(1, 32, 32))
    with pytest.raises(WrongConnectionError, match="Connect one from Load CLIP"):
        refine(parts, picture(), square(), comment="no text")
    with pytest.raises(WrongConnectionError, match="no reward of Feedback Loop|no reward of this pack"):
        refine(parts, picture(), square(), reward=torch.zeros(1))
    with pytest.raises(WrongConnectionError, match="no reward of this pack"):
        refine(parts, picture(), square(), guidance=1.0)


def test_an_interrupt_is_taken_at_once(parts, inference_mode):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        refine(parts, picture(), square())
    assert torch.is_inference_mode_enabled()
