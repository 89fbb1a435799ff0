"""report.html: grids side by side, curves, and one paragraph in plain words. One file, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

TITLES = {
    "plain": "Plain",
    "watermark_penalty": "Watermark penalty while sampling",
    "negative_prompt": "Negative prompt “watermark”",
    "taste_guidance": "Guided by the learned taste",
    "lora": "LoRA from the same 200 ratings",
    "both": "LoRA and guidance together",
}
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); --accent: #d9822b }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin-bottom: .3rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p { max-width: 46rem }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1.2rem }
figure { margin: 0 }
figcaption { font-weight: 600; margin-bottom: .35rem }
figcaption span { font-weight: 400; opacity: .75 }
img { width: 100%; image-rendering: pixelated; border-radius: 6px; display: block }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
svg { width: 100%; height: auto }
.note { opacity: .75; font-size: .92rem }
"""


def grid(images: torch.Tensor, columns: int = 8, gap: int = 2, zoom: int = 2) -> Image.Image:
    """(B, 3, H, W) in 0..1 -> one picture."""
    rows, (h, w) = -(-len(images) // columns), images.shape[-2:]
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), (128, 128, 128))
    for i, image in enumerate(images):
        tile = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
        sheet.paste(tile, ((i % columns) * (w + gap), (i // columns) * (h + gap)))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def side_by_side(grids: dict[str, Image.Image], names: Sequence[str], gap: int = 24) -> Image.Image:
    """Some rows beside each other under their titles, as the README shows them."""
    font, head = ImageFont.load_default(size=22), 44
    width, height = grids[names[0]].size
    sheet = Image.new("RGB", (len(names) * (width + gap) - gap, height + head), "white")
    for i, name in enumerate(names):
        left = i * (width + gap)
        ImageDraw.Draw(sheet).text((left, 8), TITLES[name], fill="black", font=font)
        sheet.paste(grids[name], (left, head))
    return sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.BOX)


def _embedded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(name: str, image: Image.Image, row: dict[str, Any]) -> str:
    title = html.escape(TITLES[name])
    said = f"taste {row['taste_mean']:+.2f}, watermarks {row['watermark_rate']:.0%}"
    picture = f'<img alt="{title}" src="{_embedded(image)}">'
    return f"<figure><figcaption>{title} <span>{said}</span></figcaption>{picture}</figure>"


def gain_bars(report: dict[str, Any]) -> str:
    """An SVG of each row's taste gain over plain with its 95 % interval, in standard deviations of plain."""
    names, sd = [n for n in TITLES if n != "plain"], report["plain"]["taste_sd"]
    ends = [v / sd for n in names for v in report[n]["taste_gain_interval"]]
    low, high = min(0.0, *ends) * 1.1, max(0.5, *ends) * 1.1

    def x(value: float) -> float:
        return 250 + 420 * (value - low) / (high - low)

    height = 34 * len(names)
    parts = [f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{height}" stroke="currentColor" opacity=".4"/>']
    for i, name in enumerate(names):
        gain, (a, b), y = report[name]["taste_gain_in_sd_of_plain"], ends[2 * i : 2 * i + 2], 34 * i + 17
        left, width = min(x(0), x(gain)), abs(x(gain) - x(0))
        parts += [
            f'<text x="0" y="{y + 5}" fill="currentColor" font-size="14">{html.escape(TITLES[name])}</text>',
            f'<rect x="{left:.1f}" y="{y - 8}" width="{width:.1f}" height="16" rx="3" fill="var(--accent)"/>',
            f'<line x1="{x(a):.1f}" x2="{x(b):.1f}" y1="{y}" y2="{y}" stroke="currentColor" stroke-width="2"/>',
            f'<text x="{x(b) + 8:.1f}" y="{y + 5}" fill="currentColor" font-size="13">{gain:+.2f}</text>',
        ]
    label = "Taste gained over plain"
    return f'<svg viewBox="0 0 740 {height + 4}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _polyline(values: Sequence[float], low: float, high: float, style: str) -> str:
    across, down = 720 / (len(values) - 1), 140 / ((high - low) or 1)
    points = " ".join(f"{10 + across * i:.1f},{150 - down * (v - low):.1f}" for i, v in enumerate(values))
    return f'<polyline points="{points}" fill="none" {style}/>'


def curve(values: Sequence[float], label: str) -> str:
    """An SVG of a loss curve: every value in grey, a running mean in the accent."""
    if len(values) < 2:
        return ""
    windows = [values[max(0, i - 15) : i + 1] for i in range(len(values))]
    smooth = [sum(w) / len(w) for w in windows]
    low, high = min(values), max(values)
    every = _polyline(values, low, high, 'stroke="currentColor" opacity=".25"')
    mean = _polyline(smooth, low, high, 'stroke="var(--accent)" stroke-width="2.5"')
    return f'<svg viewBox="0 0 740 160" role="img" aria-label="{html.escape(label)}">{every}{mean}</svg>'


def _cells(row: dict[str, Any], plain: bool) -> list[str]:
    a, b = row["taste_gain_interval"]
    return [
        str(row["n"]),
        f"{row['watermark_rate']:.1%}",
        f"{row['attribute_accuracy']:.1%}",
        f"{row['diversity']:.2f}",
        f"{row['taste_mean']:+.2f}",
        "" if plain else f"{row['taste_gain']:+.2f} ({a:+.2f} to {b:+.2f})",
    ]


def table(report: dict[str, Any]) -> str:
    heads = ["", "pictures", "watermarked", "attributes right", "diversity", "taste", "gain over plain (95 %)"]
    lines = ["<tr>" + "".join(f"<th>{h}</th>" for h in heads) + "</tr>"]
    for name, title in TITLES.items():
        cells = [html.escape(title), *_cells(report[name], name == "plain")]
        lines.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def text_table(report: dict[str, Any]) -> str:
    """The same for a terminal."""
    heads = ["", "n", "watermarked", "attributes", "diversity", "taste", "gain over plain (95 %)"]
    lines = [heads, *([title, *_cells(report[name], name == "plain")] for name, title in TITLES.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    rows = [[c.rjust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        row[0] = line[0].ljust(widths[0])
    return "\n".join("  ".join(row) for row in rows)


def paragraph(report: dict[str, Any]) -> str:
    t = report["taste"]
    gain = {name: f"{report[name]['taste_gain_in_sd_of_plain']:.2f}" for name in TITLES}
    before, after = (f"{report[n]['watermark_rate']:.0%}" for n in ("plain", "watermark_penalty"))
    return (
        f"A scripted person with a hidden taste gave stars to {report['rated']} pictures of a tiny model. From these "
        f"stars alone the pack learned a taste that agrees with the person on {t['held_out_accuracy']:.0%} of fresh "
        f"pairs (the person agrees with himself on {t['self_agreement']:.0%}, which limits any model to "
        f"{t['bound']:.0%}). Guiding the sampler by it raised the true taste by {gain['taste_guidance']} standard "
        f"deviations, a LoRA trained on the same stars by {gain['lora']}, both together by {gain['both']}. The "
        f"watermark penalty cut watermarks from {before} to {after} of the pictures. All of it is measured by a judge "
        "that none of the training ever saw."
    )


def write(out: Path, report: dict[str, Any], grids: dict[str, Image.Image], losses: Sequence[float]) -> Path:
    """Writes report.html, one JPEG a row and result.jpg; the path of the page."""
    for name, image in grids.items():
        image.save(out / f"{name}.jpg", quality=90)
    side_by_side(grids, ("plain", "taste_guidance", "lora", "both")).save(out / "result.jpg", quality=88)
    figures = "".join(_figure(name, grids[name], report[name]) for name in TITLES)
    sections = [
        f"<h1>The loop, closed once</h1><p>{html.escape(paragraph(report))}</p>",
        f"<h2>True taste gained over plain, in standard deviations</h2>{gain_bars(report)}",
        f"<h2>The same prompts and seeds in every grid</h2><div class=grids>{figures}</div>",
        f"<h2>Figures</h2>{table(report)}<p class=note>Taste is in the units of the hidden utility; intervals are "
        "of the paired difference to plain, clustered by prompt. Diversity: the mean distance between pictures.</p>",
        f"<h2>Training loss of the LoRA</h2>{curve(losses, 'Training loss')}",
    ]
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'><title>Feedback Loop: report</title>"
    page = f"<!doctype html><html lang=en>{head}<style>{STYLE}</style><body>{''.join(sections)}"
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
