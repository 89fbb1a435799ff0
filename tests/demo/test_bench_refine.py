"""The tables of docs/refine.md are those of the figures beside it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES = json.loads((ROOT / "docs" / "refine.json").read_text())


def tables():
    spec = importlib.util.spec_from_file_location("refine_table", ROOT / "bench" / "refine_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", [name for name in FIGURES if name != "pictures"])
def test_a_table_of_the_docs_is_what_was_measured(part: str) -> None:
    text = (ROOT / "docs" / "refine.md").read_text()
    found = re.search(rf"<!-- {part} -->\n(.*?)<!-- /{part} -->", text, re.DOTALL)
    assert found is not None and found[1] == tables().table(part, FIGURES[part])


def test_a_share_is_written_with_its_interval() -> None:
    assert tables().percent([0.955, 0.92, 0.976]) == "95.5 % (92 to 98)"
