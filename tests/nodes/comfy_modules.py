"""Makes ComfyUI's own modules importable here, on the CPU, so that nodes are tested in this process with real classes.

The flags are set on the parsed arguments, since `comfy.cli_args` reads no command line unless it is told to, and
before `comfy.model_management` and `folder_paths` look at them.
"""

from __future__ import annotations

import atexit
import sys
import tempfile

from feedback_loop import start

COMFYUI = start.find_comfyui()
BASE = tempfile.TemporaryDirectory(prefix="feedback_loop_comfy_")
atexit.register(BASE.cleanup)

if COMFYUI is not None:
    sys.path.insert(0, str(COMFYUI))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = BASE.name
