"""How a picture was made: plain values. A seed is text because it can be as large as 2^64 - 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Lora:
    """A LoRA as it was applied: file name, and strengths on the model and on the text encoder (None: not applied)."""

    name: str
    strength_model: float | None
    strength_clip: float | None = None


@dataclass(frozen=True)
class Provenance:
    """How a picture was made, as far as the graph says so; None where it does not."""

    prompt: str | None = None
    negative: str | None = None
    seed: str | None = None
    steps: int | None = None
    cfg: float | None = None
    sampler: str | None = None
    scheduler: str | None = None
    denoise: float | None = None
    checkpoint: str | None = None
    loras: tuple[Lora, ...] | None = None


@dataclass(frozen=True)
class Generation(Provenance):
    """A provenance, and where in which run the picture came out. `api_prompt` and `workflow` are JSON objects.

    `versions` names software and weights, for example {"comfyui": "0.30.0"}.
    """

    prompt_id: str | None = None
    node_id: str | None = None
    batch_index: int = 0
    checkpoint_hash: str | None = None
    api_prompt: dict[str, Any] | None = None
    workflow: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, provenance: Provenance, **rest: Any) -> Generation:
        """The provenance with the fields of the run added."""
        return cls(**{**vars(provenance), **rest})
