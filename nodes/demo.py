"""The demo model as ComfyUI's own objects: MODEL, CLIP, VAE and CLIP_VISION from the weights in demo/weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .compat import io

WEIGHTS = Path(__file__).parents[1] / "demo" / "weights"
LAST_BETA = 0.025  # the schedule's end, in demo/weights/scheduler: a last alpha_bar of 4e-5


def _weights(folder: str, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    path = WEIGHTS / folder / name
    if not path.exists():
        raise FileNotFoundError(f"The demo model's file {path} is missing: check out demo/weights again.")
    return {key: value.float() for key, value in load_file(path).items()}


def _config(folder: str) -> dict[str, Any]:
    return json.loads((WEIGHTS / folder / "config.json").read_text())


def load_unet(disable_dynamic: bool = False) -> Any:
    """A ModelPatcher over ComfyUI's SD1.5 UNet, v-prediction, with the demo's own schedule.

    Not CoreModelPatcher: under DynamicVRAM that streams weights, which saves nothing at this size and can't be trained.
    disable_dynamic: how core asks for that; it changes nothing here.
    """
    import comfy.model_base
    import comfy.model_detection
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    c = _config("unet")
    widths, blocks = c["block_out_channels"], len(c["block_out_channels"])
    depth = [int(kind.startswith("CrossAttn")) for kind in c["down_block_types"]]
    layers = c["layers_per_block"]
    unet_config = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": widths[0],
        "channel_mult": [w // widths[0] for w in widths],
        "num_res_blocks": [layers] * blocks,
        "transformer_depth": [d for d in depth for _ in range(layers)],
        "transformer_depth_output": [d for d in depth for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "context_dim": c["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "legacy": False,
    }
    model_config = comfy.supported_models.SD15(unet_config)
    model_config.unet_config["num_heads"] = c["attention_head_dim"]
    model_config.sampling_settings = {"linear_end": LAST_BETA}
    model_config.set_inference_dtype(torch.float32, None)
    model_config.latent_format = demo_latent_format()()
    model = comfy.model_base.BaseModel(model_config, model_type=comfy.model_base.ModelType.V_PREDICTION)
    names = comfy.utils.unet_to_diffusers(unet_config)
    state = {names[key]: value for key, value in _weights("unet", "diffusion_pytorch_model.safetensors").items()}
    model.diffusion_model.load_state_dict(state, strict=True)
    patcher = comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load_unet, ())  # by which core makes copies, as its Train LoRA does
    return patcher


def demo_latent_format() -> type:
    """SD1.5's in shape and scale, but of other content: its previews and small decoders show nothing of these."""
    import comfy.latent_formats

    preview = _config("decoder")

    class DemoLatent(comfy.latent_formats.SD15):
        own_decoder = str(WEIGHTS / "decoder" / "model.safetensors")

        def __init__(self) -> None:
            super().__init__()
            self.latent_rgb_factors, self.latent_rgb_factors_bias = preview["factors"], preview["bias"]
            self.taesd_decoder_name = None

    return DemoLatent


def load_clip() -> Any:
    """A CLIP of ComfyUI's SD1 classes, with the demo's tokenizer."""
    import comfy.clip_model
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    config = _config("text_encoder")
    special = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["eos_token_id"]}

    class DemoTokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None):
            super().__init__(
                tokenizer_path=str(WEIGHTS / "tokenizer"),
                embedding_directory=embedding_directory,
                embedding_size=config["hidden_size"],
                tokenizer_data=tokenizer_data or {},
            )

    class TextTower(comfy.clip_model.CLIPTextModel):
        """ComfyUI fixes the vocabulary at 49,408 and the projection at the text's width; the demo's are smaller."""

        def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any):
            super().__init__(config, dtype, device, operations)
            width = config["hidden_size"]
            self.set_input_embeddings(operations.Embedding(config["vocab_size"], width, dtype=dtype, device=device))
            self.text_projection = operations.Linear(
                width, config["projection_dim"], bias=False, dtype=dtype, device=device
            )

    class DemoTextModel(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None):
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(config),
                model_class=TextTower,
                special_tokens=special,
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None):
            super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=DemoTokenizer)

    class TextModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None):
            super().__init__(device, dtype, model_options or {}, clip_model=DemoTextModel)

    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(Tokenizer, TextModel))
    missing, unexpected = clip.cond_stage_model.clip_l.transformer.load_state_dict(
        _weights("text_encoder", "model.safetensors"), strict=False
    )
    _require_complete("text encoder", missing, unexpected)
    return clip


def _require_complete(part: str, missing: list[str], unexpected: list[str]) -> None:
    missing = [key for key in missing if "position_ids" not in key]
    if missing or unexpected:
        raise RuntimeError(f"The demo model's {part} does not fit ComfyUI's: missing {missing}, unknown {unexpected}.")


def load_vae() -> Any:
    """A VAE of ComfyUI's KL autoencoder class."""
    import comfy.sd

    c = _config("vae")
    widths = c["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": c["latent_channels"],
        "resolution": c["sample_size"],
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [w // widths[0] for w in widths],
        "num_res_blocks": c["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    state = _weights("vae", "diffusion_pytorch_model.safetensors")
    vae = comfy.sd.VAE(sd=state, config={"params": {"ddconfig": ddconfig, "embed_dim": c["latent_channels"]}})
    vae.throw_exception_if_invalid()
    return vae


def load_clip_vision() -> Any:
    """The image tower, trained contrastively with the captions, as ComfyUI's CLIP_VISION."""
    import comfy.clip_vision

    vision = comfy.clip_vision.ClipVisionModel(_config("image_encoder") | {"model_type": "clip_vision_model"})
    missing, unexpected = vision.load_sd(_weights("image_encoder", "model.safetensors"))
    _require_complete("image encoder", missing, unexpected)
    return vision


@cache
def load_demo_model() -> tuple[Any, Any, Any, Any]:
    """MODEL, CLIP, VAE, CLIP_VISION; loaded once, since a graph's cache may drop the node's outputs."""
    return load_unet(), load_clip(), load_vae(), load_clip_vision()


class FeedbackDemoModel(io.ComfyNode):
    """A model small enough to try everything on a laptop in minutes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackDemoModel",
            display_name="Demo model",
            category="feedback/demo",
            search_aliases=["tiny model", "demo", "example model"],
            description=(
                "A tiny Stable Diffusion that draws coloured shapes at 64 x 64, for trying the feedback nodes without "
                "downloading anything. Use CFG 2, 20 steps, euler, sgm_uniform."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The denoiser. Latents are 8 x 8 for pictures of 64 x 64."),
                io.Clip.Output(
                    tooltip="The text encoder. It knows words such as: two large red stars, bright plain background."
                ),
                io.Vae.Output(tooltip="The autoencoder."),
                io.ClipVision.Output(tooltip="The image encoder that a learned taste needs."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model())


NODES = [FeedbackDemoModel]
