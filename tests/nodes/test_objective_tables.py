"""The tables of objectives in the help pages say what the nodes begin with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from feedback_loop.nodes import reinforce_inputs, training_inputs
from feedback_loop.nodes.reinforce import FeedbackReinforceLora
from feedback_loop.nodes.training import FeedbackTrainLora
from feedback_loop.training.distributed_options import RATES

PAGES = Path(__file__).resolve().parents[2] / "web" / "docs"
NODES = [(FeedbackTrainLora, training_inputs), (FeedbackReinforceLora, reinforce_inputs)]


def rows(page: str) -> dict[str, list[str]]:
    """Of the table under "Which objective": the cells after the name, by name."""
    part = page.split("## Which objective")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {name: rest for name, *rest in cells[2:]}


def default_of(node: Any, name: str) -> Any:
    return next(one.default for one in node.define_schema().inputs if one.id == name)


@pytest.mark.parametrize(("node", "inputs"), NODES, ids=["train", "reinforce"])
def test_the_table_of_objectives_says_what_the_node_begins_with(node: Any, inputs: Any) -> None:
    """Every choice has a row, with each of its numbers and no other one. What differs from the node's learning rate is
    the rate that the command line takes by itself."""
    table = rows((PAGES / f"{node.define_schema().node_id}.md").read_text("utf-8"))
    options = inputs.objective_input().options
    assert list(table) == [option.key for option in options]
    for option in options:
        _, _, rate, told = table[option.key]
        own = {one.id: one.default for one in option.inputs if not isinstance(one.default, bool)}
        written = dict(re.findall(r"(\w+) ([\d.]+)(?:, |$)", told))
        assert {name: float(value) for name, value in written.items()} == own, option.key
        assert float(rate) == RATES.get(option.key.lower(), default_of(node, "learning_rate")), option.key


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (FeedbackTrainLora, "For all: {steps} steps, rank {rank}"),
        (FeedbackReinforceLora, "For all: {epochs} epochs of {updates} updates, rank {rank}"),
    ],
)
def test_the_length_and_rank_under_the_table_are_the_nodes(node: Any, sentence: str) -> None:
    names = re.findall(r"{(\w+)}", sentence)
    page = (PAGES / f"{node.define_schema().node_id}.md").read_text("utf-8")
    assert sentence.format(**{name: default_of(node, name) for name in names}) in " ".join(page.split())
