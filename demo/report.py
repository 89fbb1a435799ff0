"""report.html: grids side by side, curves, and one paragraph in plain words. One file, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

TITLES = {
    "plain": "Plain",
    "watermark_penalty": "Watermark penalty while sampling",
    "negative_prompt": "Negative prompt “watermark”",
    "taste_guidance": "Guided by the learned taste",
    "lora": "LoRA from the same 200 ratings",
    "both": "LoRA and guidance together",
}
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); --accent: #d9822b; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p { max-width: 46rem } .grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1.2rem }
figure { margin: 0 } figcaption { font-weight: 600; margin-bottom: .35rem } figcaption span { font-weight: 400; opacity: .75 }
img { width: 100%; image-rendering: pixelated; border-radius: 6px; display: block }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line) } th:first-child, td:first-child { text-align: left }
svg { width: 100%; height: auto } .note { opacity: .75; font-size: .92rem }
"""


def grid(images: torch.Tensor, columns: int = 8, gap: int = 2, zoom: int = 2) -> Image.Image:
    """(B, 3, H, W) in 0..1 -> one picture."""
    rows, (h, w) = -(-len(images) // columns), images.shape[-2:]
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), (128, 128, 128))
    for i, image in enumerate(images):
        tile = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
        sheet.paste(tile, ((i % columns) * (w + gap), (i // columns) * (h + gap)))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def _embedded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(name: str, image: Image.Image, row: dict[str, Any]) -> str:
    caption = f"{html.escape(TITLES[name])} <span>taste {row['taste_mean']:+.2f}, watermarks {row['watermark_rate']:.0%}</span>"
    return f'<figure><figcaption>{caption}</figcaption><img alt="{html.escape(TITLES[name])}" src="{_embedded(image)}"></figure>'


def gain_bars(report: dict[str, Any]) -> str:
    """An SVG of each row's taste gain over plain with its 95 % interval, in standard deviations of plain."""
    names = [n for n in TITLES if n != "plain"]
    sd = report["plain"]["taste_sd"]
    top = max(0.5, *(report[n]["taste_gain_interval"][1] / sd for n in names)) * 1.1
    low = min(0.0, *(report[n]["taste_gain_interval"][0] / sd for n in names)) * 1.1
    x = lambda v: 250 + 420 * (v - low) / (top - low)  # noqa: E731
    parts = [f'<line x1="{x(0)}" x2="{x(0)}" y1="0" y2="{34 * len(names)}" stroke="currentColor" opacity=".4"/>']
    for i, name in enumerate(names):
        gain, (a, b) = report[name]["taste_gain"] / sd, (v / sd for v in report[name]["taste_gain_interval"])
        y = 34 * i + 17
        parts.append(f'<text x="0" y="{y + 5}" fill="currentColor" font-size="14">{html.escape(TITLES[name])}</text>')
        parts.append(
            f'<rect x="{min(x(0), x(gain))}" y="{y - 8}" width="{abs(x(gain) - x(0)):.1f}" height="16" rx="3" fill="var(--accent)"/>'
        )
        parts.append(f'<line x1="{x(a)}" x2="{x(b)}" y1="{y}" y2="{y}" stroke="currentColor" stroke-width="2"/>')
        parts.append(f'<text x="{x(b) + 8}" y="{y + 5}" fill="currentColor" font-size="13">{gain:+.2f}</text>')
    return f'<svg viewBox="0 0 740 {34 * len(names) + 4}" role="img" aria-label="Taste gained over plain">{"".join(parts)}</svg>'


def curve(values: Sequence[float], label: str) -> str:
    """An SVG of a loss curve: every value in grey, a running mean in the accent."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    points = lambda v: " ".join(
        f"{10 + 720 * i / (len(v) - 1):.1f},{150 - 140 * (y - low) / (high - low or 1):.1f}" for i, y in enumerate(v)
    )  # noqa: E731
    smooth = [sum(values[max(0, i - 15) : i + 1]) / len(values[max(0, i - 15) : i + 1]) for i in range(len(values))]
    return (
        f'<svg viewBox="0 0 740 160" role="img" aria-label="{html.escape(label)}">'
        f'<polyline points="{points(list(values))}" fill="none" stroke="currentColor" opacity=".25"/>'
        f'<polyline points="{points(smooth)}" fill="none" stroke="var(--accent)" stroke-width="2.5"/></svg>'
    )


def table(report: dict[str, Any]) -> str:
    heads = ["", "pictures", "watermarked", "attributes right", "diversity", "taste", "gain over plain (95 %)"]
    lines = ["<tr>" + "".join(f"<th>{h}</th>" for h in heads) + "</tr>"]
    for name, title in TITLES.items():
        r = report[name]
        a, b = r["taste_gain_interval"]
        gain = "" if name == "plain" else f"{r['taste_gain']:+.2f} ({a:+.2f} to {b:+.2f})"
        cells = [
            html.escape(title),
            r["n"],
            f"{r['watermark_rate']:.1%}",
            f"{r['attribute_accuracy']:.1%}",
            f"{r['diversity']:.2f}",
            f"{r['taste_mean']:+.2f}",
            gain,
        ]
        lines.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def paragraph(report: dict[str, Any]) -> str:
    t, sd = report["taste"], report["plain"]["taste_sd"]
    return (
        f"A scripted person with a hidden taste gave stars to {report['rated']} pictures of a tiny model. From these stars "
        f"alone the pack learned a taste that agrees with the person on {t['held_out_accuracy']:.0%} of fresh pairs "
        f"(the person agrees with himself on {t['self_agreement']:.0%}, which limits any model to {t['bound']:.0%}). "
        f"Guiding the sampler by it raised the true taste by {report['taste_guidance']['taste_gain'] / sd:.2f} standard deviations, "
        f"a LoRA trained on the same stars by {report['lora']['taste_gain'] / sd:.2f}, both together by "
        f"{report['both']['taste_gain'] / sd:.2f}. The watermark penalty cut watermarks from "
        f"{report['plain']['watermark_rate']:.0%} to {report['watermark_penalty']['watermark_rate']:.0%} of the pictures. "
        "All of it is measured by a judge that none of the training ever saw."
    )


def write(out: Path, report: dict[str, Any], grids: dict[str, Image.Image], losses: Sequence[float]) -> Path:
    """Writes report.html and one JPEG a row; the path of the page."""
    for name, image in grids.items():
        image.save(out / f"{name}.jpg", quality=90)
    figures = "".join(_figure(name, grids[name], report[name]) for name in TITLES)
    body = (
        f"<h1>The loop, closed once</h1><p>{html.escape(paragraph(report))}</p><h2>True taste gained over plain, in standard deviations</h2>"
        f"{gain_bars(report)}<h2>The same prompts and seeds in every grid</h2><div class=grids>{figures}</div>"
        f"<h2>Figures</h2>{table(report)}<p class=note>Taste in the units of the hidden utility; "
        f"intervals are of the paired difference to plain, clustered by prompt. Diversity is the mean distance between pictures.</p>"
        f"<h2>Training loss of the LoRA</h2>{curve(losses, 'Training loss')}"
    )
    page = f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Feedback Loop: demo report</title><style>{STYLE}</style><body>{body}"
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
