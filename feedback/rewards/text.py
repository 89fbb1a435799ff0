"""Words as a reward: how much closer a picture is to a wish than to its opposite, in a joint space of both.

Radford et al. 2021 (CLIP, arXiv:2103.00020), Zhai et al. 2023 (SigLIP, arXiv:2303.15343). The difference of two
similarities is what a classifier over the two texts would see; what any text gets from a picture cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Embed, Encoder, Reward, RewardError, embed_once, matching_encoder
from .networks import unit, whole_and_nearer

NEUTRAL = "a picture"
"""What a wish without an opposite is compared with."""

SHARPNESS = 100.0
"""CLIP's own factor between cosines and logits; trained models are at about this value."""

TextTower = Callable[[Sequence[str]], Tensor]
"""Texts -> (N,F) in the joint space."""


class TextReward(Reward):
    """`scale * (cos(image, wish) - cos(image, opposite))`: log-odds of the wish against its opposite, about.

    Flattened beyond `enough` on the good side, where only the encoder's mistakes are left to gain. Averaged over the
    picture and its middle nine tenths where `steady`. The encoder's first F features are its embedding in the joint
    space; wish, opposite: (F,).
    """

    kind = "text"
    negligible = 0.05

    def __init__(
        self,
        encoder: Encoder,
        wish: Tensor,
        opposite: Tensor,
        name: str,
        scale: float = SHARPNESS,
        enough: float = 10.0,
        steady: bool = True,
    ) -> None:
        if wish.ndim != 1 or wish.shape != opposite.shape or not len(wish):
            raise RewardError("The two texts have embeddings of different widths: they are not of one text encoder.")
        self.encoders, self.name = (encoder,), name
        self.scale, self.enough, self.steady = scale, enough, steady
        self._texts = unit(torch.stack([wish, opposite]))

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        views = whole_and_nearer(images) if self.steady else (images,)
        found = [self._odds(embed(self.encoders[0]))]
        found += [self._odds(embed_once(view)(self.encoders[0])) for view in views[1:]]
        odds = torch.stack(found).mean(dim=0)
        return self.enough - F.softplus(self.enough - odds)

    def _odds(self, features: Tensor) -> Tensor:
        width = self._texts.shape[1]
        if features.shape[1] < width:
            raise RewardError(
                f"The texts have {width} numbers each, but the image encoder gives {features.shape[1]}: they are not "
                "of one model. Connect the CLIP and the CLIP_VISION of one CLIP model."
            )
        similar = unit(features[:, :width]) @ self._texts.to(features.device).T
        return self.scale * (similar[:, 0] - similar[:, 1])

    def to(self, device: torch.device | str) -> None:
        super().to(device)
        self._texts = self._texts.to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        settings = {"encoder": self.encoders[0].id, "name": self.name, "scale": self.scale, "enough": self.enough}
        return {"texts": self._texts}, settings | {"steady": self.steady}

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], encoders: Sequence[Encoder]
    ) -> TextReward:
        texts = tensors.get("texts")
        if texts is None or texts.ndim != 2 or len(texts) != 2:
            raise RewardError("The file's wish has no embeddings of its two texts: it is damaged; make it again.")
        encoder = matching_encoder(encoders, str(settings["encoder"]))
        scale, enough = float(settings["scale"]), float(settings["enough"])
        return cls(encoder, texts[0], texts[1], str(settings["name"]), scale, enough, bool(settings["steady"]))


class PreferenceReward(Reward):
    """`(scale * cos(image, prompt) - mean) / std`, as PickScore and HPSv2 rank pictures of one prompt.

    Kirstain et al. 2023 (PickScore, arXiv:2305.01569). prompt: what pictures are judged for where nobody says what they
    were made for, as inside a sampler. Differences between pictures of one prompt mean something, levels do not.
    """

    negligible = 0.02

    def __init__(self, encoder: Encoder, texts: TextEncoder, prompt: str, name: str, scale: float = SHARPNESS) -> None:
        self.encoders, self.prompt, self.name, self.scale = (encoder,), prompt, name, scale
        self._texts = texts

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        if prompts is None and not self.prompt.strip():
            raise RewardError(f"'{self.name}' judges pictures for a prompt: write it as the wish.")
        words = self._texts([self.prompt] * len(images) if prompts is None else list(prompts))
        width = words.shape[1]
        seen = unit(embed(self.encoders[0])[:, :width])
        return self.scale * (seen * unit(words.to(seen.device))).sum(dim=1)


class TextEncoder:
    """Texts -> (N,F); each text is run once and kept. What is kept has no gradient."""

    def __init__(self, tower: TextTower) -> None:
        self._tower = tower
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            with torch.no_grad():
                self._known |= dict(zip(new, self._tower(new).float().cpu(), strict=True))
        return torch.stack([self._known[text] for text in texts])


def directional(
    encoder: Encoder, tower: TextTower, wish: str, opposite: str, scale: float = SHARPNESS, enough: float = 10.0
) -> TextReward:
    """The reward for a wish, against its opposite or, where there is none, against any picture.

    Raises RewardError for an empty wish, and for two texts that the text encoder takes for the same.
    """
    wish, opposite = wish.strip(), opposite.strip()
    if not wish:
        raise RewardError("The wish is empty: write in a few words what pictures should be like.")
    with torch.no_grad():
        words = tower([wish, opposite or NEUTRAL]).float()
    if not bool(words.isfinite().all()) or float((unit(words)[0] - unit(words)[1]).abs().max()) < 1e-5:
        raise RewardError(
            f"The text encoder takes “{wish[:60]}” and “{(opposite or NEUTRAL)[:60]}” for the same: write an opposite "
            "that differs, or connect a text encoder that was trained together with the image encoder."
        )
    name = f"“{wish[:40]}”" + (f" rather than “{opposite[:40]}”" if opposite else "")
    return TextReward(encoder, words[0], words[1], name, scale, enough)


class TextNetwork(nn.Module):
    """The text half of a CLIP or SigLIP in transformers' classes: token ids (N,T) -> (N,F)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.projection = model.text_model, getattr(model, "text_projection", nn.Identity())

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return self.projection(self.tower(input_ids=ids, attention_mask=mask).pooler_output)


class ImageNetwork(nn.Module):
    """The image half: preprocessed pixels -> (B,F)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.projection = model.vision_model, getattr(model, "visual_projection", nn.Identity())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(self.tower(pixel_values=pixels).pooler_output)
