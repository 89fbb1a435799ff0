"""Every kind of adapter on ComfyUI's own classes: what is trained is what the loader gives; memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedback_loop.nodes import memory
from feedback_loop.nodes.checkpointing import blocks
from feedback_loop.nodes.existing_lora import existing_lora
from feedback_loop.nodes.memory import Need, NotEnoughMemoryError, need_of
from feedback_loop.nodes.policy import Guided, Policy, Setup, trainable
from feedback_loop.nodes.training_run import with_lora
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training import lora_files
from feedback_loop.training.adapters import KINDS
from feedback_loop.training.objectives import Batch, Sft

from .test_policy import SIGMA, difference, noised, prompts, push, stock

MODELS = ("sd15", "sdxl", "sd3", "flux")

pytestmark = pytest.mark.usefixtures("inference_mode")


def saved(model: Any, policy: Policy, path: Path) -> Any:
    """The adapter through its file and ComfyUI's loader, on the user's MODEL."""
    layers = policy.adapters.low_rank()
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    lora_files.save(path, layers, lora_files.metadata("a", "kind", layers, {"rank": 4}), known)
    return with_lora(model, load_file(path))


@pytest.mark.parametrize("adapter", KINDS)
@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_what_was_trained_is_what_comfyuis_loader_gives(kind: str, adapter: Any, tmp_path: Path, caplog: Any) -> None:
    """Bit-equal at the start, then max |dD| < 1e-5 through the file, no unmatched key."""
    model, x, conds = tiny_models.MODELS[kind](), noised(kind), prompts(kind, 77)
    with trainable(model, rank=4, seed=0, setup=Setup(adapter)) as policy, torch.no_grad():
        with policy.view("ref"):
            plain = policy.denoise(x, SIGMA, conds)
        assert torch.equal(policy.denoise(x, SIGMA, conds), plain)
        push(policy)
        expected = policy.denoise(x, SIGMA, conds)
        loaded = saved(model, policy, tmp_path / "a.safetensors")
    seen = torch.stack([stock(loaded, x, SIGMA, cond)[i] for i, cond in enumerate(conds)])
    assert not [r.message for r in caplog.records if "not loaded" in r.message.lower()]
    assert (seen - expected).abs().max() < 1e-5
    assert (seen - plain).abs().max() > 1e-2


@pytest.mark.parametrize("kind", MODELS)
def test_checkpointing_changes_no_gradient_and_keeps_less(kind: str) -> None:
    """Against the gradient without it and against finite differences; the count of what is kept falls by a third."""
    x, conds = noised(kind), prompts(kind, 77)
    found, kept = [], []
    for checkpointing in (False, True):
        setup = Setup(checkpointing=checkpointing)
        with trainable(deep(kind), rank=4, seed=0, setup=setup) as policy:
            push(policy)
            kept.append(need_of(policy, Sft(), batch(x, conds)).graph)

            def loss(policy: Policy = policy) -> Tensor:
                return policy.denoise(x, SIGMA, conds).double().square().mean()

            loss().backward()
            gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
            found.append(torch.cat([g.flatten() for g in gradients]))
            unit = [g / found[-1].norm() for g in gradients]
            slope = difference(loss, policy.parameters(), unit)
            assert float(found[-1].norm()) == pytest.approx(slope, rel=0.03)
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-7)
    assert kept[1] < 0.67 * kept[0]


def deep(kind: str) -> Any:
    """The tiny model, with six blocks where it has one or two: a single block has to be kept in any case."""
    from comfy import supported_models

    if kind == "flux":
        deeper = {"depth": 3, "depth_single_blocks": 3}
        return tiny_models._patcher(supported_models.Flux(tiny_models._FLUX | deeper), 0)
    if kind == "sd3":
        return tiny_models._patcher(supported_models.SD3(tiny_models._SD3 | {"num_blocks": 6}), 0)
    return tiny_models.MODELS[kind]()


def batch(x: Tensor, conds: list[Any]) -> Batch:
    ones = torch.ones(len(x))
    return Batch(x, x, SIGMA, ones, ones, conds)


def test_a_unets_blocks_are_found_once_each() -> None:
    """sd15 in small: per level one residual and one transformer block down, two up, and two and one in the middle."""
    found = [type(block).__name__ for block in blocks(tiny_models.sd15().model.diffusion_model)]
    assert found.count("ResBlock") == 8 and found.count("BasicTransformerBlock") == 7


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_precision_asked_for_is_computed_in(precision: Any) -> None:
    seen = []
    with trainable(tiny_models.sd15(), rank=4, seed=0, setup=Setup(precision=precision)) as policy:
        first = policy.inner.diffusion_model.input_blocks[1][0]
        first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
        policy.denoise(noised("sd15"), SIGMA, prompts("sd15", 77)).square().mean().backward()
        assert all(p.dtype == torch.float32 and p.grad is not None for p in policy.parameters())
    assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32]


@pytest.mark.parametrize("adapter", KINDS)
@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_the_old_view_computes_in_half_precision_too(kind: str, adapter: Any) -> None:
    """A copy of theta is theta bit for bit, and stays what it was when theta moves on."""
    x, conds = noised(kind), prompts(kind, 77)
    setup = Setup(adapter, precision="bf16")
    with trainable(tiny_models.MODELS[kind](), rank=4, seed=0, setup=setup) as policy, torch.no_grad():
        push(policy)
        policy.adapters.follow(0.0)
        theta = policy.denoise(x, SIGMA, conds)
        with policy.view("old"):
            assert torch.equal(policy.denoise(x, SIGMA, conds), theta)
        push(policy)
        with policy.view("old"):
            assert torch.equal(policy.denoise(x, SIGMA, conds), theta)
        assert not torch.equal(policy.denoise(x, SIGMA, conds), theta)


def test_what_does_not_fit_is_refused_before_it_starts_in_words_that_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory of 2 MB: the adapter alone takes more."""
    monkeypatch.setattr(memory.comfy.model_management, "get_free_memory", lambda device: 2 * 2**20)
    with trainable(tiny_models.sd15(), rank=16, seed=0) as policy:
        with pytest.raises(NotEnoughMemoryError, match="not even one picture fits.*gradient_checkpointing on"):
            need_of(policy, Sft(), batch(noised("sd15"), prompts("sd15", 77)))


def test_a_batch_that_does_not_fit_at_once_starts_in_parts() -> None:
    """Room for 115 / 1.15 - 40 = 60 at 20 a picture: three at once, so 8 pictures in 3 parts."""
    assert Need(adapter=40, graph=20, free=115).parts(8) == 3
    assert Need(adapter=40, graph=20, free=10_000).parts(8) == 1
    with pytest.raises(NotEnoughMemoryError):
        Need(adapter=40, graph=61, free=115).parts(8)


def test_the_count_is_that_of_torchs_own_graph() -> None:
    """Bytes of distinct storages that autograd saves, weights aside, held against the count."""
    x, conds = noised("sd15"), prompts("sd15", 77)
    with trainable(tiny_models.sd15(), rank=4, seed=0) as policy:
        held: dict[int, Tensor] = {w.untyped_storage().data_ptr(): w for w in policy.inner.parameters()}
        weights = set(held)

        def keep(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            kept = policy.denoise(x[:1], SIGMA[:1], conds[:1])
        expected = sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in weights)
        assert kept.requires_grad
        assert need_of(policy, Sft(), batch(x, conds)).graph == pytest.approx(expected, rel=0.01)


def test_cfg_is_guidance_of_the_two_estimates() -> None:
    """negative + scale * (positive - negative), each picture with its own scale; scale 1 is the positive alone."""
    x, conds = noised("sd15"), prompts("sd15", 77)
    with trainable(tiny_models.sd15(), rank=4, seed=0) as policy, torch.no_grad():
        positive, negative = policy.denoise(x, SIGMA, conds), policy.denoise(x, SIGMA, [conds[1]] * 3)
        guided = [Guided(c, conds[1], scale) for c, scale in zip(conds, (2.0, 3.0, 5.0), strict=True)]
        seen = policy.denoise(x, SIGMA, guided)
        alone = policy.denoise(x, SIGMA, [Guided(c, conds[1], 1.0) for c in conds])
    scale = torch.tensor([2.0, 3.0, 5.0]).reshape(3, 1, 1, 1)
    assert torch.allclose(seen, negative + scale * (positive - negative), atol=1e-6)
    assert torch.equal(alone, positive)


def test_the_samplers_see_the_adapter_of_the_view_that_is_on() -> None:
    """ComfyUI's own sampling code on `on_model` gives the policy's estimates, and the MODEL's own in view ref."""
    model, x, conds = tiny_models.sd15(), noised("sd15"), prompts("sd15", 77)
    with trainable(model, rank=4, seed=0) as policy, torch.no_grad():
        push(policy)
        theta = policy.denoise(x, SIGMA, [conds[0]] * 3)
        assert torch.allclose(stock(policy.on_model(), x, SIGMA, conds[0]), theta, atol=1e-5)
        with policy.view("ref"):
            assert torch.allclose(stock(policy.on_model(), x, SIGMA, conds[0]), stock(model, x, SIGMA, conds[0]))
    assert not torch.allclose(stock(model, x, SIGMA, conds[0]), theta, atol=1e-3)


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


@pytest.mark.parametrize("adapter", ["LoRA", "rsLoRA", "DoRA"])
def test_training_goes_on_where_an_existing_lora_is(loras: Path, adapter: Any) -> None:
    """A file of rank 2 and alpha 1 under kohya's names for other programs, gone on with at rank 4."""
    model, x, conds = tiny_models.sd15(), noised("sd15"), prompts("sd15", 77)
    with trainable(model, rank=2, seed=0) as policy, torch.no_grad():
        push(policy)
        tensors = lora_files.to_tensors(policy.adapters.low_rank())
        expected = policy.denoise(x, SIGMA, conds)
    save_file(kohya(tensors), loras / "old.safetensors")
    known = existing_lora(model, "old.safetensors", rank=4)
    with trainable(model, rank=4, seed=1, setup=Setup(adapter, existing=known)) as policy, torch.no_grad():
        assert torch.allclose(policy.denoise(x, SIGMA, conds), expected, atol=1e-5)


def kohya(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that trainers for other programs write: lora_unet_input_blocks_1_1_..., alpha 1 for the same effect."""
    renamed = {}
    for key, tensor in tensors.items():
        path, _, name = key.removeprefix(lora_files.PREFIX).partition(".lora_")
        if not name:
            path, name = path.removesuffix(".alpha"), "alpha"
        else:
            name = f"lora_{name}"
        # alpha 2 of rank 2 becomes alpha 1, and up twice as large
        scaled = tensor / 2 if name == "alpha" else tensor * 2 if "up" in name else tensor
        renamed[f"lora_unet_{path.replace('.', '_')}.{name}"] = scaled
    return renamed


def test_a_lokr_file_becomes_a_lora_where_its_rank_allows(loras: Path) -> None:
    """Its rank is at most that of the layer; a rank of 2 cannot hold it, one of 64 holds all."""
    model, x, conds = tiny_models.sd15(), noised("sd15"), prompts("sd15", 77)
    with trainable(model, rank=4, seed=0, setup=Setup("LoKr", "attention")) as policy, torch.no_grad():
        push(policy)
        expected = policy.denoise(x, SIGMA, conds)
        saved(model, policy, loras / "lokr.safetensors")
    with pytest.raises(lora_files.LoraFileError, match="raise the rank"):
        existing_lora(model, "lokr.safetensors", rank=2)
    known = existing_lora(model, "lokr.safetensors", rank=64)
    with trainable(model, rank=64, seed=1, setup=Setup(existing=known)) as policy, torch.no_grad():
        assert torch.allclose(policy.denoise(x, SIGMA, conds), expected, atol=1e-4)


def test_a_lora_of_another_model_or_a_higher_rank_is_refused(loras: Path) -> None:
    save_file({"diffusion_model.nowhere.lora_up.weight": torch.ones(2, 2)}, loras / "other.safetensors")
    with pytest.raises(lora_files.LoraFileError, match="another kind of model"):
        existing_lora(tiny_models.sd15(), "other.safetensors", rank=4)
    model = tiny_models.sd15()
    with trainable(model, rank=8, seed=0) as policy:
        saved(model, policy, loras / "large.safetensors")
    known = existing_lora(model, "large.safetensors", rank=4)
    with pytest.raises(ValueError, match="set rank to 8 or more"), trainable(model, 4, 0, Setup(existing=known)):
        pass


def test_layers_are_chosen_by_patterns() -> None:
    with trainable(tiny_models.sd15(), 4, 0, Setup(layers="*attn2.to_k, *attn2.to_v")) as policy:
        names = policy.adapters.low_rank()
    assert names and all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in names)
