"""A rollout is many runs of the stock KSampler, whichever prompts share a batch."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.model_management
import comfy.samplers
import nodes as comfy_nodes
import pytest
import torch
from torch import Tensor

from feedback_loop.nodes import sampling
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.tests.nodes import tiny_models

KINDS = sorted(tiny_models.MODELS)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


_made: dict[str, tuple] = {}


@pytest.fixture(scope="module", autouse=True)
def _let_go() -> Iterator[None]:
    """ComfyUI's models complain when the interpreter takes them down at its end."""
    yield
    _made.clear()


def model_and_vae(kind: str) -> tuple:
    if kind not in _made:
        _made[kind] = tiny_models.MODELS[kind](1), tiny_models.vae(2, tiny_models.CHANNELS[kind])
    return _made[kind]


def stock(
    kind: str, positive: list, seed: int, sampler: str, cfg: float = 3.0, size: int = 64, steps: int = 4
) -> tuple:
    """What the nodes Empty Latent Image, KSampler and VAE Decode make of the same inputs."""
    model, vae = model_and_vae(kind)
    negative = tiny_models.conditioning(kind, 99)
    (empty,) = comfy_nodes.EmptyLatentImage().generate(size, size)
    (out,) = comfy_nodes.KSampler().sample(model, seed, steps, cfg, sampler, "simple", positive, negative, empty)
    (images,) = comfy_nodes.VAEDecode().decode(vae, out)
    return out["samples"], images.movedim(-1, 1)


def ours(kind: str, positives: list, seeds: list[int], sampler: str, cfg: float = 3.0, **options) -> sampling.Rollout:
    model, vae = model_and_vae(kind)
    negative = tiny_models.conditioning(kind, 99)
    return sampling.rollout(model, positives, negative, vae, seeds, 4, cfg, sampler, "simple", 64, 64, **options)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of the values' own spread (random eps models leave latents of spread 80)."""
    return float((a - b).abs().max() / max(1.0, float(b.std())))


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde", "uni_pc"])
def test_one_picture_is_bit_for_bit_the_ksampler_nodes(kind: str, sampler: str) -> None:
    with torch.inference_mode():
        positive = tiny_models.conditioning(kind, 5)
        latents, images = stock(kind, positive, 12, sampler)
        made = ours(kind, [positive], [12], sampler)
    assert torch.equal(made.latents, latents)
    assert torch.equal(made.images, images)
    assert made.images.shape == (1, 3, 64, 64)
    assert 0 <= made.images.min() and made.images.max() <= 1


def test_a_batch_of_different_prompts_is_the_pictures_made_one_by_one(kind: str) -> None:
    with torch.inference_mode():
        positives = [tiny_models.conditioning(kind, s) for s in range(5)]
        made = ours(kind, positives, [7, 8, 9, 10, 11], "euler")
        for i in range(5):
            alone, picture = stock(kind, positives[i], 7 + i, "euler")
            assert relative(made.latents[i : i + 1], alone) < 1e-4
            assert (made.images[i : i + 1] - picture).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_no_picture_depends_on_its_batch_whatever_the_sampler(sampler: str) -> None:
    """Also for the samplers that draw noise on the way, and for the one that chooses its steps by the batch's error."""
    with torch.inference_mode():
        positives = [tiny_models.conditioning("sd15", s) for s in range(3)]
        together = ours("sd15", positives, [20, 21, 22], sampler).latents
        for i in range(3):
            alone, _ = stock("sd15", positives[i], 20 + i, sampler)
            assert relative(together[i : i + 1], alone) < 2e-4


def test_prompts_differ_and_seeds_differ(kind: str) -> None:
    """The negative control of the tests above: neither the prompt nor the seed is ignored."""
    with torch.inference_mode():
        a, b = tiny_models.conditioning(kind, 1), tiny_models.conditioning(kind, 2)
        latents = ours(kind, [a, b, a], [3, 3, 4], "euler").latents
    assert relative(latents[0], latents[1]) > 0.01
    assert relative(latents[0], latents[2]) > 0.01


def test_prompts_of_different_lengths_come_back_in_their_own_order(kind: str) -> None:
    with torch.inference_mode():
        lengths = [77, 154, 77, 231]
        positives = [tiny_models.conditioning(kind, s, tokens=n) for s, n in enumerate(lengths)]
        made = ours(kind, positives, [1, 2, 3, 4], "euler").latents
        for i in range(4):
            alone, _ = stock(kind, positives[i], 1 + i, "euler")
            assert relative(made[i : i + 1], alone) < 1e-4


def test_the_batch_size_does_not_change_the_pictures() -> None:
    with torch.inference_mode():
        positives = [tiny_models.conditioning("sdxl", s) for s in range(5)]
        whole = ours("sdxl", positives, list(range(5)), "euler_ancestral", batch_size=5)
        parts = ours("sdxl", positives, list(range(5)), "euler_ancestral", batch_size=2)
    assert relative(whole.latents, parts.latents) < 1e-4


def test_eight_prompts_cost_the_model_calls_of_one() -> None:
    """4 Euler steps and CFG: ComfyUI joins cond and uncond, so 4 calls of 16 rows, not 32 of 2."""
    model, _ = model_and_vae("sd15")
    counted = model.clone()
    rows: list[int] = []

    def count(apply_model, given):
        rows.append(len(given["input"]))
        return apply_model(given["input"], given["timestep"], **given["c"])

    counted.set_model_unet_function_wrapper(count)
    with torch.inference_mode():
        positives = [tiny_models.conditioning("sd15", s) for s in range(8)]
        negative = tiny_models.conditioning("sd15", 99)
        sampling.sample(counted, positives, negative, list(range(8)), 4, 3.0, "euler", "simple", 64, 64)
    assert rows == [16, 16, 16, 16]


def test_models_that_fold_a_batchs_conditioning_only_share_a_batch_within_one_prompt() -> None:
    """A subclass stands for every architecture that was not tested: Lumina turns the mask into one token count."""
    model, _ = model_and_vae("flux")
    a = tiny_models.conditioning("flux", 1)
    assert sampling.picture_key(model, a) == sampling.picture_key(model, b := [a[0]])
    other = model.clone()
    other.model = type("Untested", (), {})()
    assert sampling.picture_key(other, a) == sampling.picture_key(other, a) != sampling.picture_key(other, b)


def test_settings_that_differ_keep_prompts_out_of_each_others_batch() -> None:
    """Numbers are compared by value, objects (a control net) by identity, rows by shape."""
    [[cond, plain]] = tiny_models.conditioning("sdxl", 1)
    net = object()
    variants = [plain | {"width": 512}, plain | {"width": 512}, plain | {"width": 768}]
    variants += [plain | {"control": net}, plain | {"control": net}, plain | {"control": object()}]
    keys = [sampling.signature([[cond, settings]]) for settings in variants]
    assert sampling.batches(keys, 8) == [[0, 1], [2], [3, 4], [5]]


def test_stacking_joins_the_rows_and_keeps_the_rest() -> None:
    a, b = tiny_models.conditioning("sdxl", 1), tiny_models.conditioning("sdxl", 2)
    a[0][1]["strength"] = b[0][1]["strength"] = 0.5
    [[cond, settings]] = sampling.stacked([a, b])
    assert torch.equal(cond, torch.cat([a[0][0], b[0][0]]))
    assert torch.equal(settings["pooled_output"][1:], b[0][1]["pooled_output"])
    assert settings["strength"] == 0.5


def test_a_batch_too_large_for_memory_is_cut_in_two_and_keeps_its_order() -> None:
    tried: list[list[int]] = []

    def run(rows: list[int]) -> None:
        tried.append(rows)
        if len(rows) > 2:
            raise comfy.model_management.OOM_EXCEPTION("no room")

    sampling._in_batches([[0, 1, 2, 3, 4], [5]], run)
    assert tried == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4], [5]]


def test_one_picture_too_large_for_memory_is_comfyuis_own_error() -> None:
    def run(rows: list[int]) -> None:
        raise comfy.model_management.OOM_EXCEPTION("no room")

    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        sampling._in_batches([[0, 1]], run)


def test_an_interrupt_stops_between_two_steps() -> None:
    model, _ = model_and_vae("sd15")
    stopping = model.clone()
    calls = 0

    def interrupt_at_the_second(apply_model, given):
        nonlocal calls
        calls += 1
        comfy.model_management.interrupt_current_processing(calls == 2)
        return apply_model(given["input"], given["timestep"], **given["c"])

    stopping.set_model_unet_function_wrapper(interrupt_at_the_second)
    positive = tiny_models.conditioning("sd15", 1)
    with torch.inference_mode(), pytest.raises(comfy.model_management.InterruptProcessingException):
        sampling.sample(stopping, [positive] * 3, positive, [1, 2, 3], 4, 3.0, "euler", "simple", 64, 64, batch_size=1)
    assert calls == 2


def test_outside_inference_mode_nothing_holds_a_graph() -> None:
    """A trainer calls this with gradients on."""
    made = ours("sd15", [tiny_models.conditioning("sd15", 1)], [1], "euler")
    assert not made.images.requires_grad and not made.images.is_inference()


@pytest.mark.parametrize(
    ("positives", "seeds", "vae_channels", "says"),
    [
        (["sd15"], [1, 2], 4, "each picture needs one prompt and one seed"),
        ([], [], 4, "each picture needs one prompt and one seed"),
        (["sdxl"], [1], 4, "64 numbers wide, but this MODEL reads 32: connect the CLIP"),
        (["sd15"], [1], 16, "latents of 16 channels, but the model's have 4. Connect the VAE"),
    ],
)
def test_what_does_not_fit_together_is_said_in_a_sentence(positives, seeds, vae_channels, says) -> None:
    model, _ = model_and_vae("sd15")
    conds = [tiny_models.conditioning(kind, 1) for kind in positives]
    negative = tiny_models.conditioning("sd15", 2)
    vae = tiny_models.vae(1, vae_channels)
    with pytest.raises(WrongConnectionError, match=says):
        sampling.rollout(model, conds, negative, vae, seeds, 2, 3.0, "euler", "simple", 64, 64)
