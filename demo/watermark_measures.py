"""How well a watermark detector finds marks, family by family, and the pages that say so; see train_watermark.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from feedback_loop.demo import world
from feedback_loop.demo.watermark_help import REPORT
from feedback_loop.demo.watermark_pictures import ROOT, TEST_PHOTOS, clean_pictures, fonts, photographs
from feedback_loop.feedback.rewards.watermark import AUDITOR_WEIGHTS, WEIGHTS, Network, load_auditor, log_odds
from feedback_loop.training import audit, overlays, watermark

TABLE = ROOT / "docs" / "watermark.md"
AUDIT_REPORT = ROOT / "docs" / "watermark_audit.json"
AUDIT_TABLE = ROOT / "docs" / "watermark_audit.md"
TESTED = {64: 300, 128: 150, 256: 80}  # size: pictures a family, each clean and marked


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
say whether a run removed marks or only fooled [the first detector](watermark.md). Strips, plates, nets and corner
logos were held out of its training; the first detector was trained on those, and not on three families that this one
knows.

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
