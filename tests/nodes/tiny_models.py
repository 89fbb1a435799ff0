"""Random models of a few hundred thousand weights, built by ComfyUI's own classes: what the node tests run on.

`sd15()`, `sdxl()`, `sd3()`, `flux()`, `qwen()`, `zimage()` and `wan()` return a ModelPatcher (socket MODEL), `vae()` a
VAE, `clip()` and `sdxl_clip()` a CLIP, `clip_vision()` a CLIP_VISION. `conditioning(kind, seed)` makes random
CONDITIONING of the right shape, which is all that the last five need. The same seed gives the same weights; made in
inference mode they are inference tensors, as a loader node's are. Everything is float32 on ComfyUI's own devices.
Import this after ComfyUI has been made importable (tests/nodes/comfy_modules.py).
"""

from __future__ import annotations

import comfy.clip_vision
import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import torch

CONTEXT = {"sd15": 32, "sdxl": 64, "sd3": 32, "flux": 32, "qwen": 32, "zimage": 32, "wan": 32}
POOLED = {"sd15": 32, "sdxl": 32, "sd3": 16, "flux": 16}
"""Those of the others have no pooled output."""

CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16, "flux": 16, "qwen": 16, "zimage": 16, "wan": 16}

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "use_spatial_transformer": True,
    "legacy": False,
    "dtype": torch.float32,
}
_SD15 = _UNET | {"context_dim": 32, "use_linear_in_transformer": False, "adm_in_channels": None, "num_heads": 4}
_SDXL = _UNET | {
    "model_channels": 64,
    "context_dim": 64,
    "use_linear_in_transformer": True,
    "adm_in_channels": 6 * 256 + POOLED["sdxl"],
    "num_classes": "sequential",
}
_SD3 = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 1,
    "num_blocks": 2,
    "input_size": None,
    "adm_in_channels": POOLED["sd3"],
    "pos_embed_scaling_factor": None,
    "pos_embed_max_size": 16,
    "num_patches": 256,
    "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 64}},
    "dtype": torch.float32,
}
_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": POOLED["flux"],
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
    "dtype": torch.float32,
}
_QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (8, 12, 12),
    "dtype": torch.float32,
}
_ZIMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 8,
    "n_kv_heads": 8,
    "multiple_of": 32,
    "ffn_dim_multiplier": 8 / 3,
    "qk_norm": True,
    "cap_feat_dim": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [64, 64, 64],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
    "dtype": torch.float32,
}
_WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 64,
    "ffn_dim": 128,
    "freq_dim": 32,
    "text_dim": 32,
    "num_heads": 2,
    "num_layers": 2,
    "dtype": torch.float32,
}


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fill every weight in place: matrices scaled by their fan-in, norms near 1, biases near 0.

    ComfyUI's layers leave their weights as uninitialised memory, so everything is written here, position tables too.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = [(n, b) for n, b in module.named_buffers() if n.endswith("pos_embed")]
    for name, weight in sorted([*module.named_parameters(), *tables], key=lambda pair: pair[0]):
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.copy_(noise * (0.3 if "embed" in name else weight[0].numel() ** -0.5))
            # a prediction as small as the noise it stands for
            if name.startswith(("out.", "final_layer.", "proj_out.")):
                weight.mul_(0.3)
        else:
            weight.copy_(0.05 * noise + (1.0 if name.endswith("weight") else 0.0))
    return module.eval()


def _patcher(config: comfy.supported_models_base.BASE, seed: int) -> comfy.model_patcher.ModelPatcher:
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    randomise(model.diffusion_model, seed)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def sd15(seed: int = 0, prediction: str = "eps") -> comfy.model_patcher.ModelPatcher:
    """Stable Diffusion 1.x in small; `prediction` "v" makes a v-prediction model of it."""
    config = comfy.supported_models.SD15(_SD15)
    if prediction == "v":
        config.model_type = lambda state_dict, prefix="": comfy.model_base.ModelType.V_PREDICTION
    return _patcher(config, seed)


def sdxl(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """SDXL in small: pooled text and the picture's size enter beside the cross attention."""
    return _patcher(comfy.supported_models.SDXL(_SDXL), seed)


def sd3(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """Stable Diffusion 3 in small: flow matching, shift 3, joint attention over text and picture, 16 channels."""
    return _patcher(comfy.supported_models.SD3(_SD3), seed)


def flux(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """Flux in small: flow matching with embedded guidance, one double and one single block, 16 channels."""
    return _patcher(comfy.supported_models.Flux(_FLUX), seed)


def qwen(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """Qwen-Image in small: flow matching, latents with a frame axis, no pooled text."""
    return _patcher(comfy.supported_models.QwenImage(_QWEN), seed)


def zimage(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """Z-Image in small: ComfyUI's Lumina2 class, flow matching, text and picture in one sequence."""
    return _patcher(comfy.supported_models.ZImage(_ZIMAGE), seed)


def wan(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """Wan 2.1 in small: a video model, whose still is a film of one frame; flow matching, shift 8."""
    return _patcher(comfy.supported_models.WAN21_T2V(_WAN), seed)


MODELS = {"sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux, "qwen": qwen, "zimage": zimage, "wan": wan}


def latent_shape(kind: str, batch: int, side: int = 8) -> tuple[int, ...]:
    """Of a batch of latents of `kind`: those of Qwen-Image and Wan have a frame axis."""
    return (batch, CHANNELS[kind], *((1,) if kind in ("qwen", "wan") else ()), side, side)


def vae(seed: int = 0, channels: int = 4) -> comfy.sd.VAE:
    """KL autoencoder, 8 pixels a latent, of the smallest widths that ComfyUI's GroupNorm of 32 groups takes."""
    ddconfig = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": ddconfig, "embed_dim": channels}
    weights = randomise(comfy.ldm.models.autoencoder.AutoencoderKL(**params), seed).state_dict()
    made = comfy.sd.VAE(weights, config={"params": params}, dtype=torch.float32)
    made.latent_channels = channels
    return made


_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}


def _clip(target: comfy.supported_models_base.ClipTarget, seed: int) -> comfy.sd.CLIP:
    options = {"clip_l_model_config": _TEXT, "clip_g_model_config": _TEXT, "dtype": torch.float32}
    made = comfy.sd.CLIP(target, model_options=options)
    randomise(made.cond_stage_model, seed)
    return made


def clip(seed: int = 0) -> comfy.sd.CLIP:
    """SD1.x's text encoder in small, with its own tokenizer; fits `sd15()`."""
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    return _clip(target, seed)


def sdxl_clip(seed: int = 0) -> comfy.sd.CLIP:
    """SDXL's two text encoders in small; fits `sdxl()`."""
    target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    return _clip(target, seed)


def clip_vision(seed: int = 0, image_size: int = 32) -> comfy.clip_vision.ClipVisionModel:
    """CLIP's image tower in small: 8-pixel patches, three layers of width 32."""
    config = _TEXT | {
        "hidden_act": "quick_gelu",
        "image_size": image_size,
        "model_type": "clip_vision_model",
        "num_channels": 3,
        "patch_size": 8,
        "projection_dim": 16,
    }
    made = comfy.clip_vision.ClipVisionModel(config)
    randomise(made.model, seed)
    return made


def conditioning(kind: str, seed: int = 0, tokens: int = 77) -> list:
    """Random CONDITIONING for one prompt of the model `kind` (a key of MODELS), as a text encoder would make it."""
    generator = torch.Generator().manual_seed(seed)
    cond = torch.randn(1, tokens, CONTEXT[kind], generator=generator)
    pooled = {"pooled_output": torch.randn(1, POOLED[kind], generator=generator)} if kind in POOLED else {}
    return [[cond, pooled]]
