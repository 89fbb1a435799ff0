"""The README's commands are the ones that CI runs, and every file that the docs name is there.

What needs the nodes themselves (help pages, tooltips, workflows) stands in tests/nodes/test_docs.py.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from feedback_loop import start
from feedback_loop.demo import watermark_help

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [
    path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("demo/*.md"), *ROOT.glob("web/docs/*.md")]
]


def commands(text: str) -> list[str]:
    """The lines of the fenced shell blocks, without comments."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


def test_the_readme_shows_its_two_commands_and_the_picture_on_the_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:40])
    assert "python3 start.py demo" in commands(first_screen)
    assert "python3 start.py test" in commands(first_screen)
    assert "pip install -r requirements.txt" in commands(first_screen)
    assert "docs/images/result.jpg" in first_screen


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "python3 start.py test" in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.parametrize("line", [line for line in commands(README) if "start.py" in line])
def test_start_py_knows_every_command_of_the_readme(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.split()[2:]
    with pytest.raises(SystemExit) as ended:
        start.main([*words, "--help"])
    assert ended.value.code == 0
    usage = capsys.readouterr().out
    assert all(word in usage for word in words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_to_a_file_of_the_repository(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with 3.11")
def test_requirements_txt_and_pyproject_ask_for_the_same_packages() -> None:
    """The Manager installs the one, pip the other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert sorted(line for line in lines if line and not line.startswith("#")) == sorted(project["dependencies"])


def test_every_requirement_is_pinned_in_the_constraints_file() -> None:
    pinned = {
        start.name_of(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
    }
    for file in start.REQUIREMENTS:
        wanted = {
            start.name_of(line) for line in (ROOT / file).read_text("utf-8").splitlines() if line[:1] not in ("", "#")
        }
        assert wanted <= pinned, file


def test_the_published_archive_leaves_out_what_the_registry_forbids() -> None:
    left_out = (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    assert {"start.py", "demo/*.py", "tests/"} <= set(left_out)


def test_the_help_of_the_watermark_penalty_says_what_was_measured_last() -> None:
    """`python demo/train_watermark.py` writes it, also with --measure alone."""
    page, rows = watermark_help.PAGE.read_text("utf-8"), json.loads(watermark_help.REPORT.read_text("utf-8"))["rows"]
    assert page == watermark_help.renewed(page, rows)


def test_the_range_in_that_help_is_from_the_worst_held_out_family_to_the_best_and_rounds_nothing_up() -> None:
    def row(pictures: str, held_out: bool, auroc: float, found: float) -> dict[str, object]:
        return {"pictures": pictures, "size": 64, "held_out": held_out, "auroc": auroc, "tpr_at_1_fpr": found}

    rows = [row("all", True, 0.719, 0.049), row("all", True, 0.849, 0.2), row("all", False, 0.99, 0.9)]
    drawn = [row("drawn world", True, 0.999, 0.5), row("drawn world, blurred", True, 0.5, 0.0)]
    said = " ".join(watermark_help.paragraph(rows + drawn).split())
    assert "in 71 to 84 of a hundred cases" in said and "finds 4 to 20 of a hundred marks" in said
    assert said.endswith("On the demo's drawn world it is 99 and 50.")
