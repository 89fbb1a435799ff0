"""The tables of objectives in the help pages say what the nodes begin with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from feedback_loop.nodes import cautions, reinforce_inputs, training_inputs
from feedback_loop.nodes.reinforce import FeedbackReinforceLora
from feedback_loop.nodes.training import FeedbackTrainLora

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
    """Every choice has a row, with each of its numbers and no other one. The rate is the node's, or where that is 0 the
    objective's own, which the command line takes as well."""
    table = rows((PAGES / f"{node.define_schema().node_id}.md").read_text("utf-8"))
    options = inputs.objective_input().options
    assert list(table) == [option.key for option in options]
    for option in options:
        _, _, rate, told = table[option.key]
        own = {one.id: one.default for one in option.inputs if not isinstance(one.default, bool)}
        written = dict(re.findall(r"(\w+) ([\d.]+)(?:, |$)", told))
        assert {name: float(value) for name, value in written.items()} == own, option.key
        assert float(rate) == training_inputs.rate_of(option.key, default_of(node, "learning_rate")), option.key


def test_pairs_and_likes_begin_with_a_fifth_of_the_rate_and_a_rate_of_the_others_is_warned_of() -> None:
    assert [training_inputs.rate_of(kind, 0.0) for kind in ("SFT", "NFT", "DPO", "KTO")] == [1e-4, 1e-4, 2e-5, 2e-5]
    assert training_inputs.rate_of("DPO", 3e-5) == 3e-5
    assert "0.0001 is 5 times DPO's own" in cautions.of_fast_pairs("DPO", 1e-4)[0]
    assert not any(cautions.of_fast_pairs(kind, rate) for kind, rate in (("DPO", 2e-5), ("KTO", 5e-5), ("SFT", 1e-2)))


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
