"""What people write is text in every page of ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "web").rglob("*.js"))
ACTS = re.compile(
    r"\.(innerHTML|outerHTML|srcdoc)\b|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
    r"|\beval\(|new Function\(|set(Timeout|Interval)\(\s*['\"`]|javascript:|setAttribute\(\s*['\"]on"
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_or_code_of_a_text(script: Path) -> None:
    lines = script.read_text("utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if ACTS.search(line)] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_asks_another_server(script: Path) -> None:
    """Addresses in comments and namespaces aside, ours have no host."""
    code = re.sub(r"//.*|http://www\.w3\.org/\S+", "", script.read_text("utf-8").replace("://", ":§§"))
    assert "§§" not in code.replace("http:§§www.w3.org", "")


def test_there_are_scripts_to_look_at() -> None:
    assert len(SCRIPTS) > 10
