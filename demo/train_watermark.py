"""The recipe of the watermark detector in feedback/rewards/weights. Ten minutes on one core.

    python demo/train_watermark.py             # draw, train, save, measure
    python demo/train_watermark.py --measure   # measure the saved weights only
    python demo/train_watermark.py --audit     # train and measure the second detector (training/audit.py) instead

Pictures: scenes of the demo's drawn world without watermarks, pictures made by code, and crops of the photographs that
scikit-image and scikit-learn bring along, where these are installed. Marks: training/overlays.py only; the drawn
world's own watermarks are never trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

if not __package__:
    import pack  # noqa: F401

from feedback_loop.demo import world  # noqa: E402
from feedback_loop.feedback.rewards.watermark import (  # noqa: E402
    AUDITOR_WEIGHTS,
    WEIGHTS,
    Auditor,
    Network,
    load_auditor,
    load_detector,
    log_odds,
)
from feedback_loop.training import audit, backdrops, overlays, watermark  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "watermark.json"
TABLE = ROOT / "docs" / "watermark.md"
AUDIT_REPORT = ROOT / "docs" / "watermark_audit.json"
AUDIT_TABLE = ROOT / "docs" / "watermark_audit.md"
TRAIN_PHOTOS = (
    "astronaut camera coffee rocket hubble_deep_field retina ihc brick grass gravel moon coins flower".split()
)
TEST_PHOTOS = "chelsea motorcycle_left china page".split()
TESTED = {64: 300, 128: 150, 256: 80}  # size: pictures a family, each clean and marked


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
        (0.85, _pool(64, 3500, 3000, (0.45, 0.33, 0.22), seed)),
        (0.15, _pool(128, 500, 700, (0.1, 0.4, 0.5), seed)),
    ]


def audit_pools(seed: int) -> list[tuple[float, watermark.Pool]]:
    """Other pictures and other families of marks than the first detector's, and fewer: it has to be small."""
    return [
        (0.85, _pool(64, 2200, 2000, (0.4, 0.35, 0.25), seed, audit.TRAINED)),
        (0.15, _pool(128, 300, 420, (0.1, 0.4, 0.5), seed, audit.TRAINED)),
    ]


# --- measuring -------------------------------------------------------------------------------------------------------


def _scores(detector: Network, pictures: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        blocks = torch.from_numpy(pictures).permute(0, 3, 1, 2).split(50)
        return torch.cat([log_odds(detector, block.float() / 255) for block in blocks]).numpy()


def _laid(pictures: np.ndarray, family: overlays.Family, rng: np.random.Generator) -> np.ndarray:
    """Each picture with a mark of the family: white or black, alpha .15-.7, as in training."""
    out = []
    for picture in pictures:
        ink = [255.0] * 3 if picture.mean() < 150 else [0.0] * 3
        cover = overlays.mark(family, picture.shape[0], rng, fonts())
        out.append(overlays.lay(picture, cover, float(rng.uniform(0.15, 0.7)), ink))
    return np.stack(out)


def _as_predicted(pictures: np.ndarray, sigma: float) -> np.ndarray:
    """Blurred as a clean picture predicted from noise is."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    blurred = watermark._blurred(x, torch.full((len(x), 1, 1, 1), sigma))
    return (blurred.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()


def measure_families(
    detector: Network, size: int, rng: np.random.Generator, trained: dict[str, overlays.Family] = overlays.TRAINED
) -> list[dict[str, object]]:
    every = overlays.HELD_OUT | overlays.TRAINED
    held_out = {name: family for name, family in every.items() if name not in trained}
    clean = clean_pictures(TESTED[size], size, (0.2, 0.4, 0.4), photographs(TEST_PHOTOS), rng)
    negative, rows = _scores(detector, clean), []
    for unseen, families in ((True, held_out), (False, trained)):
        for name, family in families.items():
            values = watermark.measures(_scores(detector, _laid(clean, family, rng)), negative)
            rows.append({"pictures": "all", "size": size, "family": name, "held_out": unseen, **values})
    return rows


def measure_world(detector: Network, rng: np.random.Generator) -> list[dict[str, object]]:
    """The drawn world's own watermarks, drawn by other code; sharp and as predicted from noise."""
    scenes = [world.sample_scene(rng, watermark_rate=1.0) for _ in range(600)]
    clean = np.stack([world.draw(world.without_watermark(s)) for s in scenes])
    marked = np.stack([world.draw(s) for s in scenes])
    kind, rows = np.array([s.watermark for s in scenes]), []
    for blur in (0.0, 0.8, 1.5):
        seen = [_scores(detector, _as_predicted(p, blur) if blur else p) for p in (clean, marked)]
        label = "drawn world" + (f", blurred by {blur} px" if blur else "")
        for family in world.WATERMARKS[1:]:
            values = watermark.measures(seen[1][kind == family], seen[0])
            rows.append({"pictures": label, "size": 64, "family": family, "held_out": True, **values})
    return rows


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| pictures | px | family | in training | AUROC | AP | TPR at 1 % FPR |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r['pictures']} | {r['size']} | {str(r['family']).replace('_', ' ')} | {'no' if r['held_out'] else 'yes'} "
        f"| {r['auroc']:.3f} | {r['ap']:.3f} | {r['tpr_at_1_fpr']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


INTRODUCTION = """# The watermark detector

A convolutional network of {parameters:,} parameters ({kilobytes} kB) behind the node `FeedbackWatermarkPenalty`. It was
trained on synthetic marks alone, laid by `training/overlays.py` on pictures without any, by
`python demo/train_watermark.py`; that command wrote this page and `watermark.json`.

Three families of marks were held out of training altogether (hollow letters, tiled emblems, round stamps), and so were
the watermarks of the demo's drawn world, which other code draws. For each family {tested} pictures
(by size) are scored marked and clean; a quarter carry a sign, a subtitle or a border, which are no watermarks. Opacity
.15-.7: the faintest are hard to see for people too. AUROC is the chance that a marked picture scores above a clean
one; the last column is the share of marks found when one clean picture in a hundred is accused.

"""


AUDIT_INTRODUCTION = """# The second watermark detector

For audits only: a network of {parameters:,} parameters ({kilobytes} kB) of another architecture, trained by
`python demo/train_watermark.py --audit` from another seed on other pictures; that command wrote this page and
`watermark_audit.json`. Nothing guides by it unless it is chosen as `auditor` in `FeedbackWatermarkPenalty`, so it can
say whether a run removed marks or only fooled [the first detector](watermark.md). Strips, nets and corner logos were
held out of its training; the first detector was trained on those, and not on three families that this one knows.

Columns as in the first detector's table; {tested} pictures a family, by size.

"""


def measure(
    detector: Network,
    report: dict[str, object],
    trained: dict[str, overlays.Family] = overlays.TRAINED,
    weights: Path = WEIGHTS,
    page: tuple[Path, Path, str] = (REPORT, TABLE, INTRODUCTION),
) -> None:
    """page: where the report goes as JSON and as a table, and what stands above the table."""
    rng = np.random.default_rng(12345)
    rows = [r for size in TESTED for r in measure_families(detector, size, rng, trained)] + measure_world(detector, rng)
    parameters = sum(p.numel() for p in detector.parameters())
    report.update(
        parameters=parameters,
        pictures_a_family={str(size): count for size, count in TESTED.items()},
        fonts=[f.stem for f in fonts()],
        rows=rows,
    )
    page[0].write_text(json.dumps(report, indent=1) + "\n")
    head = page[2].format(
        parameters=parameters, kilobytes=weights.stat().st_size // 1000, tested=", ".join(map(str, TESTED.values()))
    )
    page[1].write_text(head + table(rows) + "\n")
    print(table(rows))


def measure_audit(report: dict[str, object]) -> None:
    measure(load_auditor(), report, audit.TRAINED, AUDITOR_WEIGHTS, (AUDIT_REPORT, AUDIT_TABLE, AUDIT_INTRODUCTION))


def shown(name: str) -> watermark.OnStep:
    """Prints the loss, and keeps what is learned so far in demo/.work under `name`."""
    start = time.time()

    def show(step: int, loss: float, detector: Callable[[], Network]) -> None:
        if step % 50 == 0:
            print(f"step {step} loss {loss:.3f} {time.time() - start:.0f} s", flush=True)
        if step % 250 == 249:
            watermark.save_detector(detector(), ROOT / "demo" / ".work" / f"{name}.safetensors")

    return show


def train_audit(minutes: float | None, steps: int) -> None:
    recipe, start = dataclasses.replace(audit.RECIPE, minutes=minutes, steps=steps), time.time()
    drawn = audit_pools(recipe.seed)
    print(f"drawn in {time.time() - start:.0f} s", flush=True)
    trained = watermark.train_network(Auditor, drawn, recipe, shown("watermark_audit"))
    watermark.save_detector(trained, AUDITOR_WEIGHTS)
    measure_audit({"seconds": round(time.time() - start), "steps": recipe.steps})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the saved weights only")
    parser.add_argument("--audit", action="store_true", help="the second detector instead of the first")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float, help="end the training after this time at the latest")
    parser.add_argument("--resume", action="store_true", help="go on from the saved weights")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    kept = AUDIT_REPORT if chosen.audit else REPORT
    report: dict[str, object] = json.loads(kept.read_text()) if chosen.measure and kept.exists() else {}
    if chosen.audit and chosen.measure:
        return measure_audit(report)
    if chosen.audit:
        return train_audit(chosen.minutes, chosen.steps or audit.RECIPE.steps)
    if not chosen.measure:
        recipe, start = (
            watermark.Recipe(steps=chosen.steps or watermark.Recipe.steps, minutes=chosen.minutes),
            time.time(),
        )
        drawn = pools(recipe.seed)
        print(f"drawn in {time.time() - start:.0f} s", flush=True)
        start_from = load_detector() if chosen.resume else None
        watermark.save_detector(watermark.train(drawn, recipe, shown("watermark"), start_from), WEIGHTS)
        photos = len(photographs(TRAIN_PHOTOS))
        report = {"seconds": round(time.time() - start), "steps": recipe.steps, "photographs": photos}
    measure(load_detector(), report)


if __name__ == "__main__":
    main()
