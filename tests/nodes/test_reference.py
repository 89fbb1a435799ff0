"""FeedbackReferenceGuidance on tiny models of each supported kind, through ComfyUI's own samplers."""

from __future__ import annotations

import uuid

import comfy.model_management
import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from feedback_loop.feedback.records import Generation, Rating
from feedback_loop.nodes import reference
from feedback_loop.nodes.compat import store
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.reference import FeedbackReferenceGuidance, References
from feedback_loop.tests.nodes import tiny_models


def pictures(count=2, seed=0, size=64):
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(seed))


def look(model, kind="sd15", strength=0.8, start=0.0, end=1.0, **given):
    given = given or {"liked": pictures(2, 1), "disliked": pictures(1, 2)}
    vae = tiny_models.vae(channels=tiny_models.CHANNELS[kind])
    return FeedbackReferenceGuidance.execute(model, vae, strength, start, end, **given).args[0]


def sample(model, kind="sd15", steps=3, cfg=2.0, batch=1, size=8, noise=None, sampler="euler"):
    latent = torch.zeros(batch, tiny_models.CHANNELS[kind], size, size)
    if noise is None:
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    positive, negative = tiny_models.conditioning(kind, 1), tiny_models.conditioning(kind, 2)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "normal", positive, negative, latent, disable_pbar=True, seed=0
    )


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
def test_off_is_bit_equal_and_on_is_not(kind, inference_mode):
    """Off: strength 0, and an interval in which no step lies (there are three, at 0, .5 and 1). On: likes alone,
    dislikes alone, both, with and without a negative prompt's pass."""
    model = tiny_models.MODELS[kind]()
    plain = sample(model, kind)
    assert look(model, kind, 0.0) is model
    assert torch.equal(sample(look(model, kind, start=0.6, end=0.9), kind), plain)
    assert torch.equal(sample(model, kind), plain)
    results = [plain]
    both = {"liked": pictures(2, 1), "disliked": pictures(1, 2)}
    for names in (["liked"], ["disliked"], ["liked", "disliked"]):
        results.append(sample(look(model, kind, 0.8, 0.0, 1.0, **{name: both[name] for name in names}), kind))
        assert results[-1].isfinite().all()
    assert len({one.sum().item() for one in results}) == len(results)
    assert not torch.equal(sample(look(model, kind), kind, cfg=1.0), sample(model, kind, cfg=1.0))


@pytest.mark.parametrize("kind", ["sd15", "sd3", "flux"])
def test_a_picture_that_looks_at_itself_sees_nothing_new(kind, inference_mode):
    """References that are the very picture at the same noise add every key twice, which a softmax does not notice.

    Called at one step: x is the reference's latent with the reference's own noise, the prompt alone, one picture. In
    the transformers the text's keys stand once and the picture's twice, which does change something: only that the
    result is finite and near is asked.
    """
    model = tiny_models.MODELS[kind]()
    picture = pictures(1, 3)
    looking = look(model, kind, 1.0, liked=picture)
    [references] = looking.get_wrappers(WrappersMP.APPLY_MODEL, reference.KEY)
    assert isinstance(references, References)
    latent = references.latents[0]
    sampling = model.get_model_object("model_sampling")
    sigma = torch.tensor([float(sampling.percent_to_sigma(0.5))])
    noisy = sampling.noise_scaling(sigma.reshape(1, 1, 1, 1), reference.noise_like(latent, 0), latent)
    cond = tiny_models.conditioning(kind, 1)[0]
    more = {"y": cond[1]["pooled_output"]} if kind != "sd15" else {}
    if kind == "flux":
        more["guidance"] = torch.tensor([3.5])
    plain = model.model.apply_model(noisy, sigma, c_crossattn=cond[0], transformer_options={}, **more)
    options = {"wrappers": {WrappersMP.APPLY_MODEL: {reference.KEY: [references]}}, "cond_or_uncond": [0]}
    seen = model.model.apply_model(noisy, sigma, c_crossattn=cond[0], transformer_options=options, **more)
    if kind == "sd15":
        torch.testing.assert_close(seen, plain, rtol=1e-4, atol=1e-4)
    else:
        assert seen.isfinite().all() and 0 < (seen - plain).abs().max() < plain.abs().max()


def test_references_pull_towards_themselves_and_dislikes_push_away(inference_mode):
    """With values of the references in place of the picture's own at every layer, the prediction comes nearer to what
    the model predicts for the reference itself; disliked ones, seen by the negative prompt, take it away again."""
    model = tiny_models.sd15()
    liked = sample(look(model, strength=1.0, liked=pictures(4, 5)), cfg=2.0)
    disliked = sample(look(model, strength=1.0, disliked=pictures(4, 5)), cfg=2.0)
    plain = sample(model)
    first, second = (liked - plain).flatten(), (disliked - plain).flatten()
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) < -0.1


def test_a_batch_of_two_is_two_singles(inference_mode):
    model = look(tiny_models.sd15())
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    together = sample(model, batch=2, noise=noise)
    for i in range(2):
        torch.testing.assert_close(sample(model, noise=noise[i : i + 1])[0], together[i], rtol=1e-3, atol=1e-3)


def test_references_of_other_sizes_than_the_picture_are_seen(inference_mode):
    for kind in ("sd15", "sd3", "flux"):
        model = tiny_models.MODELS[kind]()
        assert sample(look(model, kind, liked=pictures(1, 4, 72)), kind).isfinite().all()


def test_two_nodes_in_a_row_are_the_last_one(inference_mode):
    model = tiny_models.sd15()
    last = look(look(model, liked=pictures(1, 8)), liked=pictures(1, 9))
    assert torch.equal(sample(last), sample(look(model, liked=pictures(1, 9))))


def test_another_nodes_attention_override_is_kept(inference_mode):
    model, calls = tiny_models.sd15().clone(), []

    def override(attention, *args, **kwargs):
        calls.append(1)
        return attention(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    looking = look(model)
    assert torch.equal(sample(looking), sample(look(tiny_models.sd15())))
    assert calls


def test_the_best_and_the_worst_rated_are_taken_from_the_store():
    name = f"references {uuid.uuid4()}"
    kept = store()
    for stars in (1, 2, 5, 4, 3):
        made = (pictures(1, stars)[0] * 255).byte().numpy()
        kept.add_rating(Rating(kept.add_image(made, Generation(), name), stars, "ann"))
    liked, disliked = reference.extremes(kept.feedback(name), 1)
    as_stored = [(pictures(1, stars)[0] * 255).byte() / 255 for stars in (5, 1)]
    torch.testing.assert_close(liked[0], as_stored[0])
    torch.testing.assert_close(disliked[0], as_stored[1])
    assert [len(side) for side in reference.extremes(kept.feedback(name), 8)] == [2, 2]
    with pytest.raises(WrongConnectionError, match="Give some pictures stars"):
        reference.extremes(kept.feedback(f"nothing {name}"), 1)


def test_models_that_are_not_supported_are_refused_by_name():
    model = tiny_models.sd15().clone()
    model.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
    with pytest.raises(WrongConnectionError, match="U-Nets.*Stable Diffusion 3 and Flux; this model is a Linear"):
        reference.is_unet(model)


def test_nothing_to_look_at_is_said(inference_mode):
    with pytest.raises(WrongConnectionError, match="nothing to look at"):
        look(tiny_models.sd15(), liked=None)


def test_an_interrupt_is_taken(inference_mode):
    model = look(tiny_models.sd15())
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model)
