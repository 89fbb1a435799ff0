"""Writes workflows/*.json: `python tests/browser/build_workflows.py http://127.0.0.1:8188 [--pictures FOLDER] [NAME]`.

Needs a running ComfyUI with the pack, and Chromium. `--pictures` keeps a screenshot of each.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from playwright.sync_api import Page, sync_playwright  # noqa: E402
from workflow_layout import build  # noqa: E402
from workflow_plans import PLANS as TOUR  # noqa: E402
from workflow_whole_loop import PLANS as WHOLE_LOOP  # noqa: E402

PLANS = TOUR | WHOLE_LOOP
LOADED = "() => window.app?.graph && window.app?.extensionManager?.workflow?.activeWorkflow"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


def open_comfyui(page: Page, url: str, vue_nodes: bool) -> None:
    """Workflows are built in the classic renderer; the frontend itself makes room for the larger nodes of the other."""
    settings = {"Comfy.VueNodes.Enabled": vue_nodes, "Comfy.TutorialCompleted": True}
    page.request.post(f"{url}/settings", data=settings)
    page.goto(url)
    page.wait_for_function(
        "() => window.app?.graph && window.app?.extensionManager?.workflow?.activeWorkflow", timeout=120_000
    )
    page.wait_for_timeout(1500)


def photograph(page: Page, graph: dict, target: Path) -> None:
    page.evaluate(
        "async (graph) => { await app.loadGraphData(graph); app.canvas.fitViewToSelectionAnimated?.() }", graph
    )
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(2500)
    page.screenshot(path=target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--pictures", type=Path)
    asked = parser.parse_intermixed_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=asked.chromium, args=FLAGS)
        page = browser.new_context(viewport={"width": 1900, "height": 1060}).new_page()
        page.set_default_timeout(120_000)
        open_comfyui(page, asked.url, vue_nodes=False)
        graphs = {name: build(page, name, PLANS[name]) for name in asked.names or PLANS}
        for name, graph in graphs.items():
            text = json.dumps(graph, indent=1, ensure_ascii=False) + "\n"
            (ROOT / "workflows" / f"{name}.json").write_text(text, "utf-8")
        for renderer in ("classic", "vue") if asked.pictures else ():
            open_comfyui(page, asked.url, vue_nodes=renderer == "vue")
            for name, graph in graphs.items():
                photograph(page, graph, asked.pictures / f"{name}_{renderer}.png")
        browser.close()


if __name__ == "__main__":
    main()
