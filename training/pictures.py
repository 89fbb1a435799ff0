"""Pictures with what was said of them, and the examples that an objective makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .labels import Preference, pairs_to_train_on, utilities
from .objectives import Objective
from .sources import Example, standardise


@dataclass(frozen=True)
class Pictures:
    """images: one (H, W, 3) in 0..1 or bytes for each prompt and score, or none where they are kept elsewhere; scores
    of one source, on one scale.

    scores: nan for a picture that was only compared. preferences: what comparisons say, by the pictures' places.
    most: (width, height) of most of the pictures, where there are none.
    """

    images: Sequence[Tensor]
    prompts: Sequence[str]
    scores: Sequence[float]
    preferences: Sequence[Preference] = ()
    most: tuple[int, int] | None = None

    def without_images(self) -> Pictures:
        """All but the pictures themselves, which are large and not needed once they are encoded."""
        return replace(self, images=(), most=self.size())

    def size(self) -> tuple[int, int]:
        """(width, height) that most of the pictures have, in whole latents of 8 pixels."""
        if self.most is not None:
            return self.most
        (height, width), _ = Counter(tuple(image.shape[:2]) for image in self.images).most_common(1)[0]
        return width // 8 * 8, height // 8 * 8

    def utilities(self) -> Tensor:
        """(N,) how good each picture is, in standard deviations. Raises NoPreferenceError where nothing says so."""
        scores = torch.tensor(list(self.scores), dtype=torch.float64)
        rated = ~scores.isnan()
        z = torch.zeros(len(scores))
        if not self.preferences or (rated.sum() >= 2 and scores[rated].std() > 1e-6):
            prompts = [prompt for prompt, known in zip(self.prompts, rated.tolist(), strict=True) if known]
            z[rated] = standardise(scores[rated], prompts)
        u = utilities(z, self.preferences)
        return u / u.std(correction=0).clamp_min(1e-6) if not z.any() else u


def examples(
    pictures: Sequence[Pictures], latents: Sequence[Tensor], objective: Objective
) -> list[Example | tuple[Example, ...]]:
    """Examples, or pairs of them, with the objective's labels; each source of scores is standardised by itself."""
    u = torch.cat([source.utilities() for source in pictures])
    prompts = [prompt for source in pictures for prompt in source.prompts]
    if objective.pictures == 1:
        return [Example(*row) for row in zip(latents, prompts, objective.labels(u).tolist(), strict=True)]
    kinds = [(prompt, tuple(latent.shape)) for prompt, latent in zip(prompts, latents, strict=True)]
    pairs = pairs_to_train_on(u, kinds, _joined(pictures))

    def example(place: int, label: float) -> Example:
        return Example(latents[place], prompts[place], label)

    return [(example(pair.chosen, pair.gap), example(pair.rejected, -pair.gap)) for pair in pairs]


def _joined(pictures: Sequence[Pictures]) -> list[Preference]:
    """The preferences of all sources, whose pictures stand one behind the other."""
    start, found = 0, []
    for source in pictures:
        found += [Preference(p.chosen + start, p.rejected + start, p.weight) for p in source.preferences]
        start += len(source.prompts)
    return found
