"""What loading the pack adds to ComfyUI's start.

    python bench/import_time.py [--repeats 5]

Each repeat is a fresh process that has loaded what ComfyUI has loaded when it comes to the custom nodes (its own nodes
and the server), and then lets ComfyUI load an empty pack and this one, in turns first. So both pay the same for the
loading itself, and the difference is the pack's own. One more process goes before and is not counted: it leaves the
compiled bytecode, as a first start does. Seconds of wall clock and of CPU: on a busy machine the second is the one to
believe. The goal is 0.3 s.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EMPTY_PACK = """
from comfy_api.latest import ComfyExtension


class Empty(ComfyExtension):
    async def get_node_list(self):
        return []


async def comfy_entrypoint():
    return Empty()
"""


def measure(comfyui: Path, base: Path, packs: list[Path]) -> None:
    """Runs in the child: prints {"start": s, pack folder name: [wall, cpu], ...}."""
    import asyncio

    began = time.perf_counter()
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = str(base)
    import app.database.db
    import execution
    import nodes
    import server

    async def load() -> dict[str, object]:
        prompt_server = server.PromptServer(asyncio.get_running_loop())
        execution.PromptQueue(prompt_server)
        await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        seconds: dict[str, object] = {"start": time.perf_counter() - began}
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(base / "bytecode")
        for pack in packs:
            gc.collect()  # a full collection of ComfyUI's own objects, .3 s, else falls to whichever pack comes next
            wall, cpu = time.perf_counter(), time.process_time()
            if not await nodes.load_custom_node(str(pack)):
                raise SystemExit(f"ComfyUI could not load {pack}")
            seconds[pack.name] = [time.perf_counter() - wall, time.process_time() - cpu]
        return seconds

    assert app.database.db.dependencies_available()
    print("\n" + json.dumps(asyncio.run(load())))


def one_repeat(comfyui: Path, folder: Path, ours_first: bool) -> dict[str, list[float]]:
    """What one fresh process measured; see `measure`."""
    packs = ["feedback_loop", "empty"] if ours_first else ["empty", "feedback_loop"]
    command = [sys.executable, __file__, "--child", str(comfyui), str(folder), *(str(folder / pack) for pack in packs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=comfyui)
    if done.returncode:
        raise SystemExit(f"ComfyUI did not load the pack:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Prints what our pack adds to ComfyUI's start, beside an empty pack. The process is its own child, by --child."""
    if sys.argv[1:2] == ["--child"]:
        comfyui, folder, *packs = map(Path, sys.argv[2:])
        return measure(comfyui, folder, packs)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    comfyui = Path(os.environ.get("COMFYUI_PATH", ROOT / ".cache" / "ComfyUI")).absolute()
    if not (comfyui / "main.py").is_file():
        raise SystemExit(f"No ComfyUI in {comfyui}: set COMFYUI_PATH, or let `python3 start.py test` fetch it.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty").mkdir()
        (folder / "empty" / "__init__.py").write_text(EMPTY_PACK)
        (folder / "feedback_loop").symlink_to(ROOT, target_is_directory=True)
        runs = [one_repeat(comfyui, folder, bool(index % 2)) for index in range(repeats + 1)][1:]
    for column, kind in enumerate(("wall", "cpu")):
        ours = [run["feedback_loop"][column] for run in runs]
        added = [run["feedback_loop"][column] - run["empty"][column] for run in runs]
        ratio = statistics.median(ours) / statistics.median(run["empty"][column] for run in runs)
        spread = f"{min(added):.3f} to {max(added):.3f}"
        print(f"{kind:>4}: adds {statistics.median(added):.3f} s ({spread}); {ratio:.0f} times an empty pack")
    start = statistics.median(float(run["start"]) for run in runs)  # type: ignore[arg-type]
    print(f"ComfyUI's own imports before that: {start:.1f} s; {repeats} fresh processes")


if __name__ == "__main__":
    main()
