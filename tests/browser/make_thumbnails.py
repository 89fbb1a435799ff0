"""Draws workflows/*.jpg from real runs: `python tests/browser/make_thumbnails.py http://127.0.0.1:8188 [01 02 ...]`.

Runs the workflows on the collection that is there; rate some pictures of it first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from build_workflows import FLAGS, open_comfyui  # noqa: E402

SIDE, GAP, EDGE = 640, 8, 24
INK, GOLD, DIM = (24, 26, 30), (255, 194, 71), (90, 94, 102)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def answer_gates(url: str) -> None:
    """Chooses the second picture wherever a run waits for a person."""
    for gate in json.loads(get(f"{url}/feedback_loop/v1/gates"))["gates"]:
        said = {"action": "choose", "images": gate["images"][1:2], "rater": "thumbnail"}
        address = f"{url}/feedback_loop/v1/gates/{gate['key']}"
        sent = urllib.request.Request(address, json.dumps(said).encode(), {"Content-Type": "application/json"})
        urllib.request.urlopen(sent).close()


def run(url: str, prompt: dict[str, Any]) -> dict[str, Any]:
    """Queues an API prompt and returns its outputs."""
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{url}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        prompt_id = json.load(answer)["prompt_id"]
    while prompt_id not in (history := json.loads(get(f"{url}/history/{prompt_id}"))):
        answer_gates(url)
        time.sleep(0.5)
    entry = history[prompt_id]
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    return entry["outputs"]


class Shown:
    """The pictures that a run gave, by class and title of the node that shows them."""

    def __init__(self, url: str, prompt: dict[str, Any]) -> None:
        self.url, self.prompt = url, prompt
        self.outputs = run(url, prompt)

    def output(self, class_type: str, title: str | None = None) -> dict[str, Any]:
        for node_id, node in self.prompt.items():
            if node["class_type"] == class_type and title in (None, node["_meta"]["title"]):
                return self.outputs[node_id]
        raise LookupError(f"{class_type} {title}")

    def files(self, class_type: str, title: str | None = None) -> list[Image.Image]:
        found = self.output(class_type, title)["images"]
        query = "{url}/view?filename={filename}&subfolder={subfolder}&type={type}"
        return [opened(get(query.format(url=self.url, **file).replace(" ", "%20"))) for file in found]

    def captured(self) -> list[Image.Image]:
        ids = self.output("FeedbackCapture")["feedback_images"]
        return [opened(get(f"{self.url}/feedback_loop/v1/images/{image_id}/file")) for image_id in ids]


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def star(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, lit: bool) -> None:
    from math import cos, pi, sin

    points = [(x + radius * k * sin(i * pi / 5), y - radius * k * cos(i * pi / 5)) for i, k in enumerate((1, 0.45) * 5)]
    draw.polygon(points, fill=GOLD if lit else DIM)


def grid(pictures: list[Image.Image], columns: int, stars: list[int] | None = None) -> Image.Image:
    """Pictures in rows, each with its stars below, SIDE wide."""
    cell = (SIDE - 2 * EDGE - (columns - 1) * GAP) // columns
    strip = cell // 4 if stars else 0
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (SIDE, 2 * EDGE + rows * (cell + strip + GAP) - GAP), INK)
    draw = ImageDraw.Draw(canvas)
    for index, picture in enumerate(pictures):
        x, y = EDGE + index % columns * (cell + GAP), EDGE + index // columns * (cell + strip + GAP)
        canvas.paste(picture.resize((cell, cell), Image.Resampling.NEAREST), (x, y))
        for place in range(5 if stars else 0):
            centre = x + cell * (place + 1.5) / 7
            star(draw, centre, y + cell + strip / 2, strip * 0.3, bool(stars) and place < stars[index])
    return canvas


def stacked(*parts: tuple[str, Image.Image]) -> Image.Image:
    """Grids below each other, each under its title."""
    from PIL import ImageFont

    head, font = 34, ImageFont.load_default(26)
    canvas = Image.new("RGB", (SIDE, sum(part.height - EDGE + head for _, part in parts) + EDGE), INK)
    draw, y = ImageDraw.Draw(canvas), 0
    for title, part in parts:
        draw.text((EDGE, y + 12), title, fill=(230, 232, 236), font=font)
        canvas.paste(part.crop((0, EDGE, SIDE, part.height)), (0, y + head + 12))
        y += part.height - EDGE + head
    return canvas


def collect(shown: Shown) -> Image.Image:
    """Some of the rated pictures, with the stars that they got."""
    listed = json.loads(get(f"{shown.url}/feedback_loop/v1/images?collection=my%20taste&limit=200"))["items"]
    rated = [item for item in listed if item["ratings"]]
    rated = rated[:: max(1, len(rated) // 9)][:9]  # of as many prompts as there are
    pictures = [opened(get(f"{shown.url}/feedback_loop/v1/images/{item['id']}/file")) for item in rated]
    return grid(pictures, 3, [round(item["ratings"][-1]["value"]) for item in rated])


def guide(shown: Shown) -> Image.Image:
    plain, guided = shown.files("PreviewImage"), shown.captured()
    return stacked(("plain", grid(plain, 3)), ("guided by a learned taste", grid(guided, 3)))


def watermark(shown: Shown) -> Image.Image:
    plain, clean = (shown.files("PreviewImage", title)[:6] for title in ("Plain", "With the penalty"))
    return stacked(("plain", grid(plain, 3)), ("with the watermark penalty", grid(clean, 3)))


def lora(shown: Shown) -> Image.Image:
    (compared,) = shown.files("FeedbackEvaluate")
    width = min(compared.width, compared.height * 4 // 3)
    return compared.crop((0, 0, width, compared.height)).resize((SIDE, SIDE * compared.height // width))


def words(shown: Shown) -> Image.Image:
    plain, said = (shown.files("PreviewImage", title) for title in ("Plain", "As you said"))
    return stacked(("plain", grid(plain, 3)), ("larger, on the left, plain background", grid(said, 3)))


def refine(shown: Shown) -> Image.Image:
    """Every picture is marked by a box in its middle, and the workflow run once more."""
    captured = ("FeedbackCapture", "Capture pictures")
    ids = shown.output(*captured)["feedback_images"]
    box = {"shape": "rect", "geometry": [[0.2, 0.2], [0.8, 0.8]], "label": "artifact", "rater": "thumbnail"}
    for id_ in ids:
        body = json.dumps({**box, "image_id": id_, "comment": "a large blue circle"}).encode()
        address = f"{shown.url}/feedback_loop/v1/regions"
        urllib.request.urlopen(urllib.request.Request(address, body, {"Content-Type": "application/json"})).close()
    again = Shown(shown.url, shown.prompt)
    anew = again.output("FeedbackCapture", "The refined pictures")["feedback_images"]
    before, after = (
        [opened(get(f"{shown.url}/feedback_loop/v1/images/{id_}/file")) for id_ in some] for some in (ids, anew)
    )
    return stacked(("marked: a large blue circle", grid(before, 4)), ("the marked place made anew", grid(after, 4)))


def search(shown: Shown) -> Image.Image:
    best, steered = (shown.files("PreviewImage", title) for title in ("Best of eight", "Steered"))
    return stacked(
        ("the brightest of eight starts", grid(best, 4)),
        ("steered by candidates", grid(steered, 4)),
        ("a rule on the way", grid(shown.captured(), 4)),
    )


def whole_loop(shown: Shown) -> Image.Image:
    """What the gate asked about, and the one that went on."""
    (asked,) = shown.output("FeedbackGate")["feedback_gate"]
    listed = json.loads(get(f"{shown.url}/feedback_loop/v1/images?collection=my%20taste&limit=8"))["items"]
    files = [f"{shown.url}/feedback_loop/v1/images/{item['id']}/file" for item in listed]
    of_run = [file for file, item in zip(files, listed, strict=True) if item["seed"] == listed[0]["seed"]][:4]
    chosen = f"{shown.url}/feedback_loop/v1/images/{asked['images'][0]}/file"
    return stacked(
        ("steered by what you said so far", grid([opened(get(file)) for file in of_run], 4)),
        ("chosen, made anew where marked, rated", grid([opened(get(chosen))], 4, [5])),
    )


DRAWN = {
    "01": collect,
    "02": guide,
    "03": watermark,
    "04": lora,
    "05": words,
    "06": refine,
    "07": search,
    "08": lora,
    "09": whole_loop,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("numbers", nargs="*", default=list(DRAWN))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=asked.chromium, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(180_000)
        open_comfyui(page, asked.url, vue_nodes=False)
        for number in asked.numbers:
            (path,) = (ROOT / "workflows").glob(f"{number}_*.json")
            page.evaluate("graph => app.loadGraphData(graph)", json.loads(path.read_text("utf-8")))
            prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
            DRAWN[number](Shown(asked.url, prompt)).save(path.with_suffix(".jpg"), quality=88)
        browser.close()


if __name__ == "__main__":
    main()
