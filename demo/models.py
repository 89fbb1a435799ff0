"""The demo model's parts: Stable Diffusion 1.x in small. Widths are multiples of 32 (GroupNorm has 32 groups)."""

from __future__ import annotations

from pathlib import Path

import torch

WEIGHTS = Path(__file__).parent / "weights"
PICTURE, LATENT = 64, 8
TEXT_WIDTH, TEXT_TOKENS = 96, 77
LATENT_SCALE = 0.18215  # SD1.5's; the autoencoder is scaled after training so that latents times this have variance 1

# A last alpha_bar of 4e-5 (a stock schedule keeps .0047): at 8 x 8 latents the mean of the noise is else as large as
# what is left of the picture, and the model reads the background's brightness out of the noise.
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.025, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

UNET = {
    "sample_size": LATENT,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 128, 128],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,  # diffusers' name for the number of heads
    "norm_num_groups": 32,
}
VAE = {
    "sample_size": PICTURE,
    # Narrower inner levels learn slowly: with one channel a group, GroupNorm takes away how bright a picture is.
    "block_out_channels": [32, 64, 128, 128],
    "layers_per_block": 1,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 32,
    "scaling_factor": LATENT_SCALE,
}
TEXT = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": TEXT_TOKENS,
    "hidden_act": "quick_gelu",
    "projection_dim": 128,
}
VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": PICTURE,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "projection_dim": 128,
}


def alphas_bar() -> torch.Tensor:
    """(1000,) cumulative signal variance of the forward process."""
    roots = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, 0).float()


def new_unet() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def new_vae() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE)


def new_clip(vocabulary: int) -> torch.nn.Module:
    """Text and image tower with one contrastive space, in transformers' layout."""
    from transformers import CLIPConfig, CLIPModel

    tokens = {
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    return CLIPModel(CLIPConfig(text_config=TEXT | tokens, vision_config=VISION, projection_dim=128))
