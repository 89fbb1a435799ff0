"""FeedbackAutoTrain: trains when enough new ratings have come, and keeps only a LoRA that wins a blind comparison."""

from __future__ import annotations

import hashlib
from typing import Any

from ..feedback.records import Feedback
from ..training import versions
from .auto_train_inputs import PEOPLE, inputs
from .auto_train_judging import Task, called
from .auto_train_round import Told, plan, run
from .auto_train_versions import folder_of, with_version
from .compat import io, store, ui
from .decoder import check_vae
from .denoiser import WrongConnectionError
from .learning import prepared


class FeedbackAutoTrain(io.ComfyNode):
    """Ratings become candidates; people, or a reward, say which of them comes into use."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackAutoTrain",
            display_name="Train by itself",
            category="feedback/training",
            search_aliases=["continuous training", "auto train", "retrain", "blind test", "promote", "versions"],
            description=(
                "Once enough new ratings have come, trains a LoRA on them, puts its pictures and those of the LoRA in "
                "use before people as blind pairs, and takes the new one into use if it wins. Keeps every version."
            ),
            is_output_node=True,
            inputs=inputs(),
            outputs=[
                io.Model.Output("model_in_use", display_name="model", tooltip="The model with the version in use."),
                io.String.Output("lora_name", tooltip="The file of the version in use, in models/loras; or nothing."),
                io.String.Output("report", tooltip="What was done and what is waited for, in words."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str = "", **given: Any) -> str:
        """Runs again when something was said or another version came into use, else the last answer stands."""
        state = f"{store().feedback().revision} {versions.read(folder_of(name))}"
        return hashlib.sha256(state.encode()).hexdigest()

    @classmethod
    def execute(
        cls, model, feedback, clip, vae, clip_vision, name, decided_by, dry_run, reward=None, **given
    ) -> io.NodeOutput:
        check_vae(vae, model)
        check_feedback(feedback, decided_by)
        folder, judge = folder_of(name), None if decided_by["decided_by"] == PEOPLE else prepared(reward)
        given |= {"decided_by": decided_by}
        task = Task(store(), folder, name, model, clip, vae, clip_vision, feedback, judge, given)
        told = Told(["Dry run: nothing is changed.", *plan(task)]) if dry_run else run(task)
        index = versions.read(folder)
        used = index.version(index.in_use) if index.in_use else None
        report = "\n".join([f"In use: {called(index, index.in_use)}.", *told.lines])
        shown = {} if told.picture is None else ui.PreviewImage(told.picture, cls=cls).as_dict()
        output = (with_version(model, used), "" if used is None else used.file, report)
        return io.NodeOutput(*output, ui=shown | {"text": (report,), "auto_train": (name,)})


def check_feedback(feedback: Any, decided_by: dict[str, Any]) -> None:
    """Raises WrongConnectionError for no feedback, and where the pairs would come among what is learned from."""
    if not isinstance(feedback, Feedback):
        raise WrongConnectionError("What is connected as feedback is no feedback. Connect Collect feedback.")
    if decided_by["decided_by"] != PEOPLE:
        return
    collection = decided_by["collection"].strip()
    if not collection or collection == feedback.collection:
        raise WrongConnectionError(
            "The pairs to compare need a collection of their own: write another name than that of the ratings into "
            "decided_by, collection."
        )


NODES: list[type[io.ComfyNode]] = [FeedbackAutoTrain]
