"""The loop of diffusers' `train_text_to_image_lora`, from its public parts and PEFT's, with the script's defaults.

What the script does in a step: VAE and text encoder on the batch, noise, a timestep of all alike, the mean squared
error of the prediction, gradients clipped to 1, AdamW with weight decay .01. The LoRA is on the four projections of
attention, from a Gaussian start, with alpha equal to its rank; its rank and learning rate are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS = ["to_k", "to_q", "to_v", "to_out.0"]


class Loop:
    """A stock pipeline's folder, and what of it is trained."""

    def __init__(self, pipeline: Path, rank: int, learning_rate: float, seed: int) -> None:
        from accelerate import Accelerator
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from peft import LoraConfig
        from transformers import CLIPTextModel, CLIPTokenizer

        self.generator = torch.Generator().manual_seed(seed)
        self.accelerator = Accelerator(cpu=True)
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(pipeline, subfolder="tokenizer")
        self.text: Any = CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder").requires_grad_(False)
        self.vae: Any = AutoencoderKL.from_pretrained(pipeline, subfolder="vae").requires_grad_(False)
        self.noise: Any = DDPMScheduler.from_pretrained(pipeline, subfolder="scheduler")
        unet: Any = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
        for network in (self.text, self.vae, unet):
            network.float()
        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LAYERS))
        self.parameters = [p for p in unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=1e-2)
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)

    def steps(self, images: Tensor, prompts: list[str], batch: int, count: int, on_latents: bool) -> Iterator[int]:
        """Takes `count` steps. images: (N, 3, H, W) in 0..1, one for each prompt."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        known = (self.encode(images), self.read(tokens)) if on_latents else None
        for step in range(count):
            rows = torch.randperm(len(prompts), generator=self.generator)[:batch]
            if known is None:
                self.step(self.encode(images[rows]), self.read(tokens[rows]))
            else:
                self.step(known[0][rows], known[1][rows])
            yield step

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        drawn = self.vae.encode(images * 2 - 1).latent_dist.sample(self.generator)
        return drawn * self.vae.config.scaling_factor

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        return self.text(tokens, return_dict=False)[0]

    def step(self, latents: Tensor, words: Tensor) -> None:
        noise = torch.randn(latents.shape, generator=self.generator)
        times = torch.randint(0, self.noise.config.num_train_timesteps, (len(latents),), generator=self.generator)
        noisy = self.noise.add_noise(latents, noise, times)
        target = self.noise.get_velocity(latents, noise, times)  # the demo model predicts v
        with self.accelerator.accumulate(self.unet):
            predicted = self.unet(noisy, times, words, return_dict=False)[0]
            self.accelerator.backward(F.mse_loss(predicted.float(), target.float(), reduction="mean"))
            self.accelerator.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
