"""Data sets of preferences, in and out, as nodes."""

from __future__ import annotations

import comfy.utils

from ..feedback.formats import FORMATS
from ..feedback.records import Feedback
from . import exchange_files
from .compat import FEEDBACK, io, store
from .dataset import names
from .denoiser import WrongConnectionError

CATEGORY = "feedback/capture"
NAMES, NUMBERS = "names", "numbers"


class FeedbackImport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackImport",
            display_name="Import feedback",
            category=CATEGORY,
            description=(
                "Takes a data set of pictures and what people said of them from ComfyUI's input folder. Nothing is "
                "fetched from anywhere, and running it again adds nothing twice."
            ),
            search_aliases=["load dataset", "pick-a-pic", "hpd", "imagereward", "label studio", "coco", "parquet"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "file",
                    options=exchange_files.input_files(),
                    tooltip="A .parquet, .zip or .json file in ComfyUI's input folder.",
                ),
                io.Combo.Input(
                    "format",
                    options=[exchange_files.FIND_OUT, *FORMATS],
                    default=exchange_files.FIND_OUT,
                    tooltip="What kind of data set it is. It is found out by what is in the file.",
                    advanced=True,
                ),
                io.String.Input(
                    "collection",
                    default="imported",
                    tooltip="The collection that new pictures go into.",
                ),
                io.String.Input(
                    "rater",
                    default=exchange_files.NOBODY,
                    tooltip="Who judged, for formats that do not say it.",
                    advanced=True,
                ),
            ],
            outputs=[
                FEEDBACK.Output(display_name="feedback", tooltip="Everything of that collection, on the axis overall."),
                io.Int.Output(display_name="count", tooltip="How many judgements were added."),
                io.String.Output(display_name="report", tooltip="What came in, and what the file had that could not."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str, **_: object) -> bool | str:
        """In place of the list's own check, so that a file put there later can be chosen without a restart."""
        try:
            exchange_files.input_file(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> str:
        return exchange_files.state_of(file)

    @classmethod
    def execute(cls, file, format, collection, rater) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(100)
        kept, path = store(), exchange_files.input_file(file)

        def told(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        taken = exchange_files.take_in(kept, path, format, collection, rater, "", told)
        text = taken.text()
        return io.NodeOutput(kept.feedback(collection.strip()), taken.judgements, text, ui={"text": (text,)})


class FeedbackExport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackExport",
            display_name="Export feedback",
            category=CATEGORY,
            description=(
                "Writes feedback with its pictures into ComfyUI's output folder, for other training tools and for "
                "other people. Keys and passwords are taken out of all texts."
            ),
            search_aliases=["save dataset", "pick-a-pic", "hpd", "imagereward", "trl", "dpo", "label studio", "coco"],
            is_output_node=True,
            inputs=[
                FEEDBACK.Input("feedback", tooltip="What to export: the output of Collect feedback."),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    tooltip="What the file is for. No format holds everything; the report says what stayed behind.",
                ),
                io.String.Input(
                    "name",
                    default="feedback",
                    tooltip="Name of the file. If it is taken, a number is added to it.",
                ),
                io.Boolean.Input(
                    "pairs_from_stars",
                    default=False,
                    tooltip="Also writes comparisons that follow from stars: pictures of one prompt to which the same "
                    "person gave different stars. For formats that hold pairs only.",
                ),
                io.Combo.Input(
                    "raters",
                    options=[NAMES, NUMBERS],
                    default=NAMES,
                    tooltip="Whether people stand in the file by their names, or as rater 1, rater 2 and so on.",
                ),
                io.String.Input(
                    "more_axes",
                    default="",
                    tooltip="Further axes to export beside that of the feedback: names separated by commas.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.String.Output(display_name="file", tooltip="The name of the file in the output folder."),
                io.String.Output(display_name="report", tooltip="What the file holds, and what it could not hold."),
            ],
        )

    @classmethod
    def execute(cls, feedback, format, name, pairs_from_stars, raters, more_axes) -> io.NodeOutput:
        if not isinstance(feedback, Feedback):
            raise WrongConnectionError("What is connected as feedback is no feedback. Connect Collect feedback.")
        wanted = (feedback, names(more_axes), pairs_from_stars, raters == NAMES)
        bundle = exchange_files.bundle_of(store(), *wanted)
        path, report = exchange_files.export(bundle, format, name)
        text = f"Saved as {path.name}\n{report.text()}"
        return io.NodeOutput(path.name, report.text(), ui={"text": (text,)})


NODES: list[type[io.ComfyNode]] = [FeedbackImport, FeedbackExport]
