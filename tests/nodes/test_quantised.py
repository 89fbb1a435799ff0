"""Quantised bases: trained where finite differences agree, else refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn

from feedback_loop.nodes import quantised as quantised_weights
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.gradient_check import check_gradients, disagreement
from feedback_loop.nodes.memory import need_of
from feedback_loop.nodes.policy import Setup, trainable
from feedback_loop.nodes.training_run import mark_of, with_lora
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.tiny_quantised import quantised
from feedback_loop.training import lora_files
from feedback_loop.training.adapters import MovingAverage
from feedback_loop.training.loop import Plan, train
from feedback_loop.training.objectives import Sft
from feedback_loop.training.progress import Progress

from .test_architectures import batch
from .test_policy import SIGMA, noised, prompts, push, stock

pytestmark = pytest.mark.usefixtures("inference_mode")

UNETS = ("sd15", "sdxl")
KINDS = [pytest.param(k, marks=pytest.mark.long) if k in UNETS else k for k in sorted(tiny_models.MODELS)]
"""PEFT takes its time over the many layers of a UNet."""

FORMATS = ("float8_e4m3fn", "float8_e5m2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_on_fp8_scaled_weights_is_that_of_finite_differences(kind: str) -> None:
    """As the run's own check says it, at the start and off it; what is trained is float32, the weights stay fp8."""
    model = quantised(kind)
    with trainable(model, rank=4, seed=0) as policy:
        check_gradients(policy, batch(kind))
        push(policy)
        assert disagreement(policy, noised(kind), SIGMA, prompts(kind, 77)) == ""
        assert all(p.dtype == torch.float32 for p in policy.parameters())
        layers = [m for m in policy.inner.diffusion_model.modules() if isinstance(m, quantised_weights.DenseLinear)]
        assert sum(isinstance(layer.weight, QuantizedTensor) for layer in layers) >= 4
        assert policy.adapters.low_rank().keys() == plain_layers(kind)


def plain_layers(kind: str) -> Any:
    """The same layers get an adapter as on the model's full-precision file."""
    with trainable(tiny_models.MODELS[kind](), rank=4, seed=0) as policy:
        return policy.adapters.low_rank().keys()


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_the_twin_predicts_what_the_quantised_model_predicts(kind: str) -> None:
    model, x, conds = quantised(kind), noised(kind), prompts(kind, 77)
    with trainable(model, rank=4, seed=0) as policy, torch.no_grad():
        seen = policy.denoise(x, SIGMA, conds)
    expected = torch.stack([stock(model, x, SIGMA, cond)[i] for i, cond in enumerate(conds)])
    plain = torch.stack([stock(tiny_models.MODELS[kind](), x, SIGMA, cond)[i] for i, cond in enumerate(conds)])
    assert torch.allclose(seen, expected, atol=1e-5) and not torch.allclose(plain, expected, atol=1e-3)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_a_lora_learned_on_quantised_weights_works_on_the_full_precision_file(quant_format: str) -> None:
    """The LoRA moves both by the same amount, but for the rounding of the weights, which fp8 has an eighth of."""
    model, x, conds = quantised("flux", quant_format), noised("flux"), prompts("flux", 77)
    with trainable(model, rank=4, seed=0) as policy, torch.no_grad():
        before = policy.denoise(x, SIGMA, [conds[0]] * 3)
        push(policy)
        moved = policy.denoise(x, SIGMA, [conds[0]] * 3) - before
        tensors = lora_files.to_tensors(policy.adapters.low_rank())
    plain = tiny_models.flux()
    own = stock(with_lora(plain, tensors), x, SIGMA, conds[0]) - stock(plain, x, SIGMA, conds[0])
    assert (own - moved).norm() < 0.3 * own.norm()


def test_training_lowers_the_loss_and_leaves_the_quantised_weights_alone() -> None:
    model = quantised("flux")
    before = {k: v.clone() for k, v in model.model.state_dict().items() if v.dtype == torch.float8_e4m3fn}
    with trainable(model, rank=4, seed=0, setup=Setup(checkpointing=True)) as policy:
        same, seen = batch("flux"), []
        assert need_of(policy, Sft(), same).graph > 0 and len(mark_of(policy)) == 64

        class Source:
            def batch_at(self, step: int) -> Any:
                return same

        progress = Progress(policy.parameters(), MovingAverage(policy.parameters()), policy.adapters)
        train(policy, Source(), Sft(), Plan(20, 1e-2), progress, lambda step: seen.append(step.loss))
    assert seen[-1] < 0.9 * seen[0]
    assert before and all(
        torch.equal(value.view(torch.uint8), model.model.state_dict()[key].view(torch.uint8))
        for key, value in before.items()
    )


@pytest.mark.parametrize("adapter", ["rsLoRA", "LoKr"])
def test_other_adapters_train_on_quantised_weights_too(adapter: Any) -> None:
    with trainable(quantised("flux"), rank=4, seed=0, setup=Setup(adapter)) as policy:
        check_gradients(policy, batch("flux"))


def test_dora_needs_the_weights_themselves_and_is_refused() -> None:
    with pytest.raises(WrongConnectionError, match="quantised: choose LoRA, rsLoRA or LoKr"):
        with trainable(quantised("flux"), rank=4, seed=0, setup=Setup("DoRA")):
            pass


def test_a_network_that_computes_in_half_precision_is_checked_in_full_and_trained_in_half() -> None:
    """The check sees float32, then once the MODEL's own bfloat16; its predictions there are the MODEL's bit for bit."""
    seen = []
    model, x, conds = quantised("flux", computed=torch.bfloat16), noised("flux"), prompts("flux", 77)
    with trainable(model, rank=4, seed=0, setup=Setup(precision="bf16")) as policy:
        policy.inner.diffusion_model.double_blocks[0].register_forward_pre_hook(
            lambda _, args, named: seen.append(named["img"].dtype), with_kwargs=True
        )
        check_gradients(policy, batch("flux"))
        assert seen[:-1] == [torch.float32] * (len(seen) - 1) and seen[-1] == torch.bfloat16
        policy.denoise(x, SIGMA, conds).square().mean().backward()
        assert seen[-1] == torch.bfloat16
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in policy.parameters())
        with torch.no_grad(), policy.view("ref"):
            assert torch.equal(policy.denoise(x, SIGMA, [conds[0]] * 3), stock(model, x, SIGMA, conds[0]))


def test_plain_fp8_weights_are_trained_too() -> None:
    """As Load Diffusion Model makes them with weight_dtype fp8_e4m3fn: no scales, cast layer by layer."""
    model = tiny_models.flux()
    for module in model.model.diffusion_model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
            module.comfy_cast_weights = True
    with trainable(model, rank=4, seed=0) as policy:
        push(policy)
        assert disagreement(policy, noised("flux"), SIGMA, prompts("flux", 77)) == ""


def test_quantised_weights_whose_gradient_is_wrong_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass that reads another weight than the forward pass."""
    wrong = quantised_weights.DenseLinear.dense
    with trainable(quantised("flux"), rank=4, seed=0) as policy:
        monkeypatch.setattr(
            quantised_weights._ByDense, "backward", lambda ctx, g: (g @ wrong(ctx.layer, g).roll(1, 0), None)
        )
        with pytest.raises(WrongConnectionError, match=r"This MODEL \(Flux\).*finite differences"):
            check_gradients(policy, batch("flux"))


def test_quantised_weights_that_are_read_as_others_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    right = quantised_weights.DenseLinear.dense
    monkeypatch.setattr(quantised_weights.DenseLinear, "dense", lambda self, like: right(self, like).roll(1, 0))
    with trainable(quantised("flux"), rank=4, seed=0) as policy:
        with pytest.raises(WrongConnectionError, match=r"This MODEL \(Flux\).*other predictions"):
            check_gradients(policy, batch("flux"))


@pytest.mark.parametrize("quant_format", sorted(set(QUANT_ALGOS) - {"float8_e4m3fn"}))
def test_every_format_that_comfyui_knows_is_trained(quant_format: str) -> None:
    """ConvRot turns 256 inputs at a time, so it gets a Flux of that width."""
    wider = {"hidden_size": 256, "num_heads": 8} if quant_format.startswith("convrot") else {}
    with trainable(quantised("flux", quant_format, **wider), rank=4, seed=0) as policy:
        check_gradients(policy, batch("flux"))


class Foreign(Tensor):
    """Weights of another pack's format."""


def test_weights_of_a_format_that_is_not_comfyuis_are_refused_by_name() -> None:
    model = tiny_models.sd15()
    layer = model.model.diffusion_model.time_embed[0]
    layer._parameters["weight"] = layer.weight.detach().clone().as_subclass(Foreign)
    with pytest.raises(WrongConnectionError, match=r"quantised \(time_embed.0.weight is a Foreign\)"):
        with trainable(model, rank=4, seed=0):
            pass
