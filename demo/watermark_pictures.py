"""The pictures and marks that the watermark detectors are trained and tested on; see train_watermark.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from feedback_loop.demo import world
from feedback_loop.training import audit, backdrops, overlays, watermark

ROOT = Path(__file__).resolve().parents[1]
TRAIN_PHOTOS = (
    "astronaut camera coffee rocket hubble_deep_field retina ihc brick grass gravel moon coins flower".split()
)
TEST_PHOTOS = "chelsea motorcycle_left china page".split()


@lru_cache
def fonts() -> list[Path]:
    """TrueType fonts of the machine, beside Pillow's own; which ones there were stands in the report."""
    found = [p for p in Path("/usr/share/fonts").rglob("*.ttf") if p.stem.startswith(("DejaVuS", "LiberationS"))]
    return sorted(found)


def photographs(names: Sequence[str]) -> list[np.ndarray]:
    """Those of the pictures that are installed, (H,W,3) uint8."""
    folders = []
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        found = importlib.util.find_spec(package)
        if found and found.origin:
            folders.append(Path(found.origin).parent / folder)
    files = [f for folder in folders for f in sorted(folder.iterdir()) if f.stem in names]
    return [np.asarray(Image.open(f).convert("RGB")) for f in files if f.suffix in (".png", ".jpg")]


def _crop(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of the picture, mirrored and turned at random, shrunk to `size`."""
    shorter = min(photo.shape[:2])
    side = int(rng.uniform(min(shorter, max(size, 0.25 * shorter)), shorter))
    top, left = (int(rng.integers(0, n - side + 1)) for n in photo.shape[:2])
    square = Image.fromarray(photo[top : top + side, left : left + side]).resize((size, size), Image.Resampling.BOX)
    turned = np.rot90(np.asarray(square), int(rng.integers(4)) if rng.random() < 0.3 else 0)
    return turned[:, ::-1] if rng.random() < 0.5 else turned


def _scene(size: int, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(world.draw(world.sample_scene(rng, watermark_rate=0.0)))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def clean_pictures(
    count: int, size: int, shares: tuple[float, float, float], photos: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """(count, size, size, 3): shares of scenes, of pictures made by code, of photographs; some with a look-alike."""
    if not photos:
        shares = (shares[0], shares[1] + shares[2], 0.0)
    makers: list[Callable[[], np.ndarray]] = [
        lambda: _scene(size, rng),
        lambda: backdrops.backdrop(size, rng),
        lambda: _crop(photos[rng.integers(len(photos))], size, rng),
    ]
    out = []
    for _ in range(count):
        picture = makers[rng.choice(3, p=shares)]()
        if rng.random() < 0.25:
            picture = backdrops.add_look_alike(picture, rng, fonts())
        out.append(picture)
    return np.stack(out)


def _pool(
    size: int,
    count: int,
    marks: int,
    mix: tuple[float, float, float],
    seed: int,
    families: dict[str, overlays.Family] = overlays.TRAINED,
) -> watermark.Pool:
    """Drawn once and kept in demo/.work: drawing takes as long as a tenth of the training."""
    path = ROOT / "demo" / ".work" / f"watermark_{size}_{count}_{marks}_{seed}.npz"
    if not path.exists():
        rng = np.random.default_rng((seed, size))
        pictures = clean_pictures(count, size, mix, photographs(TRAIN_PHOTOS), rng)
        path.parent.mkdir(exist_ok=True)
        np.savez(path, pictures=pictures, marks=watermark.draw_marks(marks, size, rng, fonts(), families))
    kept = np.load(path)
    return watermark.Pool(kept["pictures"], kept["marks"])


def pools(seed: int) -> list[tuple[float, watermark.Pool]]:
    return [
        (0.85, _pool(64, 7000, 8000, (0.45, 0.33, 0.22), seed)),
        (0.15, _pool(128, 1000, 1600, (0.1, 0.4, 0.5), seed)),
    ]


def audit_pools(seed: int) -> list[tuple[float, watermark.Pool]]:
    """Other pictures and other families of marks than the first detector's, and fewer: it has to be small."""
    return [
        (0.85, _pool(64, 2200, 2000, (0.4, 0.35, 0.25), seed, audit.TRAINED)),
        (0.15, _pool(128, 300, 420, (0.1, 0.4, 0.5), seed, audit.TRAINED)),
    ]
