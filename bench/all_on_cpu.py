"""Import this first: makes ComfyUI (COMFYUI_PATH) and the pack importable, and keeps ComfyUI on the CPU."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "demo"), os.environ.get("COMFYUI_PATH") or str(ROOT / ".cache" / "ComfyUI")]

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import pack  # noqa: E402, F401
