"""`import pack` in a script of this folder makes the checkout importable as `feedback_loop`, the pack's name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if "feedback_loop" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "feedback_loop", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["feedback_loop"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["feedback_loop"])
