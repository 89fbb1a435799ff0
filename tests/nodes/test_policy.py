"""A trainable twin of a MODEL: what it computes is what ComfyUI computes, and the MODEL never notices.

Gradients are held against finite differences for each architecture, since some of ComfyUI's networks write into tensors
that the backward pass needs.
"""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from feedback_loop.nodes.policy import Policy, sigma_sampler, trainable
from feedback_loop.nodes.training_run import with_lora
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training import lora_files
from feedback_loop.training.adapters import MovingAverage
from feedback_loop.training.loop import Plan, estimates, train
from feedback_loop.training.objectives import Nft, Sft
from feedback_loop.training.progress import Progress
from feedback_loop.training.sources import Example, ForwardSource

KINDS = sorted(tiny_models.MODELS)
SIGMA = torch.tensor([0.2, 0.6, 0.9])


def noised(kind: str, side: int = 8) -> Tensor:
    return torch.randn(tiny_models.latent_shape(kind, 3, side), generator=torch.Generator().manual_seed(4))


def prompts(kind: str, *tokens: int) -> list[Any]:
    """Three conditionings, the first and the last of one prompt."""
    made = [tiny_models.conditioning(kind, seed, tokens[seed % len(tokens)]) for seed in range(2)]
    return [made[0], made[1], made[0]]


def stock(model: Any, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
    """The clean estimates that ComfyUI's sampling code gets of the model for one prompt."""
    conds = comfy.sampler_helpers.convert_cond(cond)
    inner, conds, _ = comfy.sampler_helpers.prepare_sampling(model, x.shape, {"positive": conds}, model.model_options)
    made = comfy.samplers.process_conds(inner, x, conds, x.device)["positive"]
    model.pre_run()
    try:
        return comfy.samplers.calc_cond_batch(inner, [made], x, sigma, model.model_options)[0]
    finally:
        model.cleanup()


def push(policy: Policy) -> None:
    """Moves the adapter off zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


@pytest.mark.usefixtures("inference_mode")
@pytest.mark.parametrize("kind", KINDS)
class TestEachArchitecture:
    def test_a_new_adapter_is_the_stock_model_bit_for_bit(self, kind: str) -> None:
        """Each picture with its own prompt in one batch, against ComfyUI's own call for each prompt."""
        model, x, conds = tiny_models.MODELS[kind](), noised(kind), prompts(kind, 77)
        with trainable(model, rank=4, seed=0) as policy:
            with torch.no_grad():
                d = policy.denoise(x, SIGMA, conds)
            grown = policy.denoise(x, SIGMA, conds)
        expected = torch.stack([stock(model, x, SIGMA, cond)[i] for i, cond in enumerate(conds)])
        assert torch.allclose(d, expected, atol=1e-5)
        assert torch.equal(d[:1], stock(model, x[:1], SIGMA[:1], conds[0])) or torch.allclose(d, expected, atol=2e-6)
        assert torch.equal(grown, d)

    def test_ref_and_theta_are_bit_equal_at_the_start_and_ref_stays(self, kind: str) -> None:
        with trainable(tiny_models.MODELS[kind](), rank=4, seed=0) as policy:
            theta = policy.denoise(noised(kind), SIGMA, prompts(kind, 77))
            push(policy)
            with torch.no_grad(), policy.view("ref"):
                ref = policy.denoise(noised(kind), SIGMA, prompts(kind, 77))
            moved = policy.denoise(noised(kind), SIGMA, prompts(kind, 77))
        assert torch.equal(theta, ref)
        assert not torch.allclose(theta, moved, atol=1e-3)

    def test_the_gradient_is_that_of_finite_differences(self, kind: str) -> None:
        """Along the gradient the loss changes by |g|^2 a unit step; along a random direction by g . v."""
        with trainable(tiny_models.MODELS[kind](), rank=4, seed=0) as policy:
            push(policy)
            x, conds = noised(kind), prompts(kind, 77)

            def loss() -> Tensor:
                return policy.denoise(x, SIGMA, conds).double().square().mean()

            loss().backward()
            parameters = policy.parameters()
            # the text half of Qwen-Image's last block leads nowhere: three layers of two matrices
            assert sum(p.grad is None for p in parameters) == (6 if kind == "qwen" else 0)
            gradients = [torch.zeros_like(p).double() if p.grad is None else p.grad.double() for p in parameters]
            generator = torch.Generator().manual_seed(2)
            noise = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in gradients]
            for direction in (gradients, noise):
                length = torch.cat([d.flatten() for d in direction]).norm()
                unit = [d / length for d in direction]
                slope = sum(float((g * u).sum()) for g, u in zip(gradients, unit, strict=True))
                assert slope == pytest.approx(difference(loss, parameters, unit), rel=0.03, abs=2e-5)

    def test_a_batch_of_different_prompts_is_the_same_as_each_alone(self, kind: str) -> None:
        x, conds = noised(kind), prompts(kind, 77)
        with trainable(tiny_models.MODELS[kind](), rank=4, seed=0) as policy, torch.no_grad():
            push(policy)
            together = policy.denoise(x, SIGMA, conds)
            alone = [policy.denoise(x[i : i + 1], SIGMA[i : i + 1], conds[i : i + 1]) for i in range(3)]
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-2)

    def test_prompts_of_different_length_share_a_batch_where_the_model_allows_it(self, kind: str) -> None:
        x, conds = noised(kind), prompts(kind, 77, 154)
        with trainable(tiny_models.MODELS[kind](), rank=4, seed=0) as policy, torch.no_grad():
            together = policy.denoise(x, SIGMA, conds)
            alone = [policy.denoise(x[i : i + 1], SIGMA[i : i + 1], conds[i : i + 1]) for i in range(3)]
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)

    def test_the_file_gives_in_comfyuis_loader_what_was_trained(self, kind: str, tmp_path: Any, caplog: Any) -> None:
        """Saved, read back, through load_lora_for_models: max |dD| < 1e-5 and no unmatched key."""
        model, x, conds = tiny_models.MODELS[kind](), noised(kind), prompts(kind, 77)
        with trainable(model, rank=4, seed=0) as policy, torch.no_grad():
            push(policy)
            expected = policy.denoise(x, SIGMA, conds)
            layers = policy.adapters.low_rank()
        known = comfy.lora.model_lora_keys_unet(model.model, {})
        lora_files.save(tmp_path / "a.safetensors", layers, lora_files.metadata("a", kind, layers, {}), known)
        loaded = with_lora(model, load_file(tmp_path / "a.safetensors"))
        seen = torch.stack([stock(loaded, x, SIGMA, cond)[i] for i, cond in enumerate(conds)])
        assert not [r.message for r in caplog.records if "not loaded" in r.message.lower()]
        plain = torch.stack([stock(model, x, SIGMA, cond)[i] for i, cond in enumerate(conds)])
        assert (seen - expected).abs().max() < 1e-5
        assert (seen - plain).abs().max() > 1e-2

    def test_training_leaves_the_users_model_as_it_was_bit_for_bit(self, kind: str) -> None:
        model, x, conds = tiny_models.MODELS[kind](), noised(kind), prompts(kind, 77)
        weights, before = state(model), stock(model, x, SIGMA, conds[0])
        trained(model, kind, Sft())
        after = state(model)
        assert weights.keys() == after.keys() and all(torch.equal(weights[name], after[name]) for name in weights)
        assert torch.equal(stock(model, x, SIGMA, conds[0]), before)
        assert not any(isinstance(m, nn.Module) and "lora" in type(m).__module__ for m in model.model.modules())

    def test_training_lowers_the_loss_of_a_picture_that_it_sees_again_and_again(self, kind: str) -> None:
        before, after = trained(tiny_models.MODELS[kind](), kind, Sft(), steps=30)
        assert after < 0.97 * before

    def test_a_rating_in_the_middle_changes_nothing_bit_for_bit(self, kind: str) -> None:
        """NFT at r = 1/2: D and O come from the same batch, one with and one without gradient, and cancel exactly."""
        with trainable(tiny_models.MODELS[kind](), rank=4, seed=0) as policy:
            before = [p.detach().clone() for p in policy.parameters()]
            progress = Progress(policy.parameters(), MovingAverage(policy.parameters()))
            train(policy, source(policy, kind, 0.5), Nft(), Plan(3, 1e-2), progress, lambda step: None)
            assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


@pytest.mark.usefixtures("inference_mode")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_weights_get_nearly_the_same_gradient_in_float32(kind: str, dtype: torch.dtype) -> None:
    """Weights rounded to 8 or 11 bits: the direction stays within a few degrees."""

    def gradient(model: Any) -> Tensor:
        with trainable(model, rank=4, seed=0) as policy:
            push(policy)
            policy.denoise(noised(kind), SIGMA, prompts(kind, 77)).square().mean().backward()
            assert {p.dtype for p in policy.parameters()} == {torch.float32}
            return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    half = tiny_models.MODELS[kind]()
    half.model.diffusion_model.to(dtype)
    half.model.diffusion_model.dtype = dtype
    half.model.manual_cast_dtype = torch.bfloat16
    assert torch.cosine_similarity(gradient(tiny_models.MODELS[kind]()), gradient(half), 0) > 0.99


def difference(loss: Any, parameters: list[nn.Parameter], unit: list[Tensor], h: float = 2e-2) -> float:
    """Central difference of the loss along `unit`; parameters are as before afterwards."""
    values = []
    with torch.no_grad():
        kept = [p.clone() for p in parameters]
        for sign in (1, -1):
            for p, k, u in zip(parameters, kept, unit, strict=True):
                p.copy_(k + sign * h * u)
            values.append(float(loss()))
        for p, k in zip(parameters, kept, strict=True):
            p.copy_(k)
    return (values[0] - values[1]) / (2 * h)


def source(policy: Policy, kind: str, label: float) -> ForwardSource:
    generator = torch.Generator().manual_seed(6)
    latents = [torch.randn(tiny_models.latent_shape(kind, 1)[1:], generator=generator) for _ in range(2)]
    conds = {"a": tiny_models.conditioning(kind, 0), "": tiny_models.conditioning(kind, 1)}
    examples = [Example(latent, "a", label) for latent in latents]
    return ForwardSource(examples, conds, policy.process, policy.sigma_at, 8, seed=0)


def trained(model: Any, kind: str, objective: Sft | Nft, steps: int = 3) -> tuple[float, float]:
    """Mean loss of one batch before and after training."""
    with trainable(model, rank=4, seed=0) as policy:
        made = source(policy, kind, 1.0)
        batch = made.batch_at(1000)

        def loss() -> float:
            with torch.no_grad():
                return objective.losses(estimates(policy, objective, batch), batch).mean().item()

        before = loss()
        progress = Progress(policy.parameters(), MovingAverage(policy.parameters()))
        train(policy, made, objective, Plan(steps, 3e-3), progress, lambda step: None)
        return before, loss()


@pytest.mark.usefixtures("inference_mode")
def test_sdxl_sees_each_prompts_pooled_text_and_each_pictures_size() -> None:
    """Two prompts that differ in the pooled embedding alone, and one prompt at two sizes."""
    one, other = tiny_models.conditioning("sdxl", 0), tiny_models.conditioning("sdxl", 0)
    other[0][1]["pooled_output"] = -one[0][1]["pooled_output"]
    x = noised("sdxl")[:1].repeat(2, 1, 1, 1)
    with trainable(tiny_models.sdxl(), rank=4, seed=0) as policy, torch.no_grad():
        d = policy.denoise(x, SIGMA[:1].repeat(2), [one, other])
        small = policy._model_conds(one, (4, 8, 8))["y"].cond
        large = policy._model_conds(one, (4, 16, 8))["y"].cond
    assert not torch.allclose(d[0], d[1], atol=1e-3)
    assert not torch.equal(small, large)


@pytest.mark.usefixtures("inference_mode")
def test_modes_and_flags_are_as_before_afterwards_also_after_an_error() -> None:
    with pytest.raises(KeyError), trainable(tiny_models.sd15(), rank=4, seed=0):
        assert comfy.model_management.in_training and torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        raise KeyError
    assert not comfy.model_management.in_training
    assert torch.is_inference_mode_enabled()


@pytest.mark.usefixtures("inference_mode")
def test_a_lora_that_the_model_carries_is_trained_on_top_of_and_not_into() -> None:
    """The twin of a patched MODEL starts where that MODEL is, and the new file holds the new part alone."""
    model, x, cond = tiny_models.sd15(), noised("sd15"), prompts("sd15", 77)
    with trainable(model, rank=4, seed=0) as policy:
        push(policy)
        carried = with_lora(model, lora_files.to_tensors(policy.adapters.low_rank()))
    with trainable(carried, rank=4, seed=1) as policy, torch.no_grad():
        start = policy.denoise(x, SIGMA, cond)
        assert not any(part.up.any() for part in policy.adapters.low_rank().values())
    expected = torch.stack([stock(carried, x, SIGMA, c)[i] for i, c in enumerate(cond)])
    plain = torch.stack([stock(model, x, SIGMA, c)[i] for i, c in enumerate(cond)])
    assert torch.allclose(start, expected, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_noise_levels_of_stable_diffusion_are_its_thousand_each_as_often(kind: str) -> None:
    sampling = tiny_models.MODELS[kind]().get_model_object("model_sampling")
    sigma = sigma_sampler(sampling)((torch.arange(1000) + 0.5) / 1000)
    assert torch.equal(sigma, sampling.sigmas.cpu())


def test_noise_levels_of_flow_models_are_logit_normal_with_the_models_shift() -> None:
    """The median of sigmoid(N(0, 1)) is 1/2, which shift 3 moves to 3/2 / (1 + 2/2) = .75; SD3's shift is 3."""
    sampling = tiny_models.sd3().get_model_object("model_sampling")
    assert sampling.shift == 3.0
    assert sigma_sampler(sampling)(torch.tensor([0.5])).item() == pytest.approx(0.75)


def test_noise_levels_of_flux_follow_its_own_shift() -> None:
    """Shift 1.15 is mu: e^1.15 / (e^1.15 + 1) at the median."""
    sampling = tiny_models.flux().get_model_object("model_sampling")
    expected = torch.tensor(sampling.shift).sigmoid().item()
    assert sigma_sampler(sampling)(torch.tensor([0.5])).item() == pytest.approx(expected)
