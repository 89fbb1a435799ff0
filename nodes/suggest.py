"""FeedbackSuggest: what people keep asking for, as standing adjustments that apply once the user has said so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker

from ..feedback.rewards.base import Reward
from ..feedback.rewards.watermark import WatermarkPenalty
from ..feedback.suggestions import Recurring, Suggestion, recurring, suggestions
from .compat import REWARD, io, store


class UnknownSuggestionError(ValueError):
    """Something was accepted that is not suggested; the message says what is."""


def chosen(made: Sequence[Suggestion], accept: str) -> list[Suggestion]:
    """Those that the user named, one on each line. Raises UnknownSuggestionError for a name that nothing has."""
    known = {one.name: one for one in made}
    wanted = list(dict.fromkeys(line.strip().lower() for line in accept.splitlines() if line.strip()))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        listed = "; ".join(known) or "nothing yet"
        raise UnknownSuggestionError(
            f"'{unknown[0][:80]}' is not suggested. Suggested: {listed}. Copy the names that you accept, one on each "
            "line."
        )
    return [known[name] for name in wanted]


def comment_of(accepted: Sequence[Suggestion]) -> str:
    """The standing wishes as one comment, for Say what to change."""
    phrases = {"more": "{}", "less": "no {}"}
    return ", ".join(phrases[one.kind].format(one.what) for one in accepted if one.kind in phrases)


def reward_of(accepted: Sequence[Suggestion]) -> Reward | None:
    return WatermarkPenalty() if any(one.kind == "penalty" for one in accepted) else None


def described(made: Sequence[Suggestion], found: Recurring, accepted: Sequence[Suggestion]) -> str:
    """Each suggestion with its evidence, and what else comes back often."""
    lines = [_line(one, one in accepted) for one in made] or [
        "Nothing comes back often enough to suggest anything yet."
    ]
    lines.append("")
    lines.append(f"Rounds of refinement: {found.rounds}, of which {found.accepted} were accepted.")
    tables: dict[str, dict[str, int]] = {
        "Marked": {label: evidence.pictures for label, evidence in found.labels.items()},
        "Places": found.places,
        "Done with pictures": found.interactions,
    }
    lines += [
        f"{name}: " + ", ".join(f"{what} {n}" for what, n in counts.items())
        for name, counts in tables.items()
        if counts
    ]
    return "\n".join(lines)


HOW = {
    "more": "as a standing wish",
    "less": "in the negative prompt",
    "penalty": "as a watermark penalty in Reward guidance",
    "train": "by Train a LoRA on Collect feedback",
}


def _line(one: Suggestion, accepted: bool) -> str:
    mark, evidence = "applied " if accepted else "", one.evidence
    who = f" by {evidence.raters} people" if evidence.raters > 1 else ""
    seen = f"; latest in {evidence.examples[0][:8]}" if evidence.examples else ""
    return f"{mark}{one.name}  ({HOW[one.kind]}; in {evidence.pictures} pictures{who}{seen})"


class FeedbackSuggest(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackSuggest",
            display_name="Suggest standing changes",
            category="feedback/refine",
            description=(
                "Reads which edits people ask for again and again, and suggests standing changes with their evidence. "
                "Nothing is applied until you name it."
            ),
            search_aliases=["recurring edits", "habits", "standing prompt", "statistics of edits", "suggestions"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "collection",
                    default="",
                    tooltip="Only what was said of pictures of this collection. Empty takes all.",
                ),
                io.Int.Input(
                    "minimum",
                    default=3,
                    min=1,
                    max=1000,
                    tooltip="In how many pictures something must have been asked for to be suggested.",
                ),
                io.String.Input(
                    "accept",
                    default="",
                    multiline=True,
                    tooltip="The suggestions that you accept, one on each line, as the node names them, such as less: "
                    "text. Empty applies nothing.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="comment", tooltip="The accepted wishes, for Say what to change."),
                REWARD.Output(
                    "reward",
                    tooltip="The accepted penalty, for Reward guidance. Without one, what is connected does not run.",
                ),
                io.String.Output(display_name="report", tooltip="All suggestions with their evidence."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> int:
        return store().revision()

    @classmethod
    def execute(cls, collection: str, minimum: int, accept: str) -> io.NodeOutput:
        found = store().ask(lambda c: recurring(c, collection.strip() or None))
        made = suggestions(found, minimum)
        accepted = chosen(made, accept)
        report = described(made, found, accepted)
        reward: Any = reward_of(accepted) or ExecutionBlocker(None)
        return io.NodeOutput(comment_of(accepted), reward, report, ui={"text": (report,)})


NODES: list[type[io.ComfyNode]] = [FeedbackSuggest]
