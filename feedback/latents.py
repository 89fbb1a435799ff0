"""Latents kept beside pictures, one safetensors file each, so that training need not encode them again."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import numpy as np

from .media import removed, write_durably

KEY = "samples"


class Latents:
    """A folder of latents (C, ...), float32, by picture id. They are as ComfyUI's LATENT holds them, without batch."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, image_id: str) -> Path:
        """Where the latent lies; raises ValueError for anything but a UUID, so that no path can be built."""
        name = str(UUID(image_id))
        return self.root / name[:2] / f"{name}.safetensors"

    def put(self, image_id: str, samples: np.ndarray) -> None:
        """Keeps the latent, on disk when this returns; one that is there already stays."""
        from safetensors.numpy import save

        if not (target := self.path(image_id)).exists():
            write_durably(target, save({KEY: np.ascontiguousarray(samples, np.float32)}))

    def get(self, image_id: str) -> np.ndarray | None:
        """The latent (C, ...), or None if none was kept."""
        from safetensors.numpy import load_file

        source = self.path(image_id)
        return load_file(source)[KEY] if source.exists() else None

    def remove(self, image_id: str) -> int:
        """Deletes the latent and returns its bytes; one that is gone already is no error."""
        return removed(self.path(image_id))
