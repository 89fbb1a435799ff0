"""Lists of prompts: written in a node, from a text file in ComfyUI's input folder, or from what was rated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths

from ..feedback.records import Feedback
from .compat import FEEDBACK, io, store

LIST, FILE, RATED = "written here", "from a file", "from the ratings"
NO_FILE = "no .txt file in the input folder"
LARGEST = 4 * 2**20


class NoPromptsError(ValueError):
    """There is nothing to draw; the message says what to write where."""


def prompts_input() -> io.DynamicCombo.Input:
    text = io.String.Input("text", default="", multiline=True, tooltip="One prompt a line; empty lines are left out.")
    file = io.Combo.Input("file", options=text_files(), tooltip="A .txt file in the input folder, a prompt a line.")
    rated = FEEDBACK.Input("feedback", tooltip="Takes every prompt of a rated picture: connect Collect feedback.")
    return io.DynamicCombo.Input(
        "prompts",
        tooltip="What to draw while training. A hundred different prompts teach more than ten.",
        options=[
            io.DynamicCombo.Option(LIST, [text]),
            io.DynamicCombo.Option(FILE, [file]),
            io.DynamicCombo.Option(RATED, [rated]),
        ],
    )


def text_files() -> list[str]:
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.name for path in folder.glob("*.txt") if path.is_file()) or [NO_FILE]


def prompts_of(chosen: dict[str, Any]) -> list[str]:
    """Each prompt once, in order. Raises NoPromptsError."""
    lines = {LIST: _written, FILE: _from_file, RATED: _rated}[chosen["prompts"]](chosen)
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise NoPromptsError("There are no prompts: write one a line, or choose another place to take them from.")
    return prompts


def _written(chosen: dict[str, Any]) -> list[str]:
    return chosen["text"].splitlines()


def _from_file(chosen: dict[str, Any]) -> list[str]:
    if chosen["file"] not in text_files() or chosen["file"] == NO_FILE:
        raise NoPromptsError(f"There is no {chosen['file']} in the input folder: put a .txt file with prompts there.")
    path = Path(folder_paths.get_input_directory()) / chosen["file"]
    if path.stat().st_size > LARGEST:
        raise NoPromptsError(f"{path.name} is larger than {LARGEST >> 20} MB: give a shorter list of prompts.")
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _rated(chosen: dict[str, Any]) -> list[str]:
    feedback = chosen["feedback"]
    if not isinstance(feedback, Feedback):
        raise NoPromptsError("What is connected as feedback is no feedback: connect Collect feedback.")
    kept = store()
    rated = [rating.prompt for rating in kept.rated(feedback)]
    compared = [prompt for pair in kept.compared(feedback) for prompt in (pair.left_prompt, pair.right_prompt)]
    return [prompt for prompt in (*rated, *compared) if prompt]
