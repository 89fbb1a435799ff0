"""FeedbackEvaluate: did it help? The same prompts and seeds with two models, judged in pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .compat import REWARD, io, ui
from .evaluating import Drawn, Evaluation, aligning, clusters_of, evaluated, eye_of, pairs_of, split_prompts
from .evaluation_page import page_of, picture_of, save_page, side_by_side
from .evaluation_votes import asked, collection_of, once, people_input, votes_so_far, voting
from .evaluation_words import figures, report_of
from .examples import encode_prompts
from .inputs import sampling_inputs, seed_input
from .learning import prepared
from .plots import interval_plot
from .prediction_gap import prediction_gap
from .sampling import rollout


def drawn_by(
    models: tuple[Any, Any], clip: Any, vae: Any, prompts: str, negative: str, seeds: int, seed: int,
    how: dict[str, Any], batch_size: int,
) -> Drawn:  # fmt: skip
    """The pictures of both models. how: steps, cfg, sampler_name, scheduler, width, height."""
    rows, own_seeds = pairs_of(split_prompts(prompts), seeds, seed)
    conds = encode_prompts(clip, [*rows, negative])
    positives = [conds[row] for row in rows]
    made = [rollout(m, positives, conds[negative], vae, own_seeds, batch_size=batch_size, **how) for m in models]
    return Drawn(rows, own_seeds, made[0].images, made[1].images, made[0].latents, conds)


def measured_in_full(
    models: tuple[Any, Any], drawn: Drawn, judge: Any, second_judge: Any, clip: Any, encoder: Any, alignment_clip: Any,
    batch_size: int,
) -> Evaluation:  # fmt: skip
    """All but what people say."""
    fit, why = aligning(clip, encoder, alignment_clip)
    found = evaluated(drawn, judge, second_judge, fit, eye_of(encoder, judge))
    positives = [drawn.conds[row] for row in drawn.rows]
    gap = prediction_gap(*models, drawn.latents, positives, clusters_of(drawn.rows), batch_size)
    unlike = "" if gap is not None else "The two models are of different kinds: their predictions can't be compared."
    return replace(found, gap=gap, notes=tuple(note for note in (why, unlike) if note))


class FeedbackEvaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackEvaluate",
            display_name="Compare two models",
            category="feedback/evaluate",
            search_aliases=["win rate", "A/B test", "benchmark", "before and after", "did it help"],
            description=(
                "Makes pictures of the same prompts and seeds with two models, lets a judge score them in pairs, and "
                "says how often B wins, with a 95 % interval."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model_a", tooltip="The model to compare with, such as the plain checkpoint."),
                io.Model.Input("model_b", tooltip="The model in question: with a LoRA or with guidance."),
                io.Clip.Input("clip", tooltip="The text encoder of both models."),
                io.Vae.Input("vae", tooltip="The VAE of both models."),
                REWARD.Input(
                    "judge",
                    tooltip="Who scores the pictures. Take another reward than the one that B was trained or guided "
                    "with: a model can learn to please its own reward without getting better.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    tooltip="One prompt a line. Take prompts that were not used for training.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="Negative prompt of every picture."),
                io.Int.Input("seeds", default=4, min=1, max=256, tooltip="Pictures for each prompt and model."),
                seed_input("Seed of the first picture; every further picture takes the next one, in both models."),
                *sampling_inputs("the pictures", "steps"),
                io.Int.Input(
                    "width", default=512, min=16, max=8192, step=8, tooltip="Width of the pictures in pixels."
                ),
                io.Int.Input(
                    "height", default=512, min=16, max=8192, step=8, tooltip="Height of the pictures in pixels."
                ),
                io.ClipVision.Input(
                    "encoder",
                    optional=True,
                    tooltip="Measures how different the pictures are from each other. Without it the judge's own "
                    "encoder does, and where it has none, the pixels of small copies.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=8,
                    min=1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="Pictures sampled at once, of whatever prompts; it changes the speed, not the pictures.",
                ),
                REWARD.Input(
                    "second_judge",
                    optional=True,
                    tooltip="Another judge. When the first one's reward rises while this one's falls, the alarm says "
                    "that the reward is being hacked.",
                ),
                io.Clip.Input(
                    "alignment_clip",
                    optional=True,
                    tooltip="The CLIP that belongs to the encoder, to measure how well pictures fit their prompts. Not "
                    "needed where the model's own CLIP is that one.",
                ),
                people_input(),
                io.String.Input(
                    "report_name",
                    default="evaluation",
                    optional=True,
                    tooltip="Name of the report, an HTML file in ComfyUI's output folder under feedback_loop. Empty "
                    "saves none.",
                ),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="A above B, each picture with its reward and prompt."),
                io.Image.Output("plot", tooltip="The win rate with its interval."),
                io.String.Output("report", tooltip="The result in plain words."),
                io.Float.Output("win_rate", tooltip="Share of the pairs that B wins; a tie counts half."),
                io.Float.Output("gain", tooltip="Mean reward of B less that of A."),
                io.String.Output("figures", tooltip="All numbers with their intervals, as JSON."),
                io.Image.Output("report_image", tooltip="Words, intervals and pictures in one image."),
                io.String.Output("alarm", tooltip="Why the reward may be hacked; empty where nothing speaks for it."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, people: Any = None, **inputs: object) -> str:
        return votes_so_far(people)

    @classmethod
    def execute(
        cls, model_a, model_b, clip, vae, judge, prompts, negative, seeds, seed, steps, cfg, sampler_name, scheduler,
        width, height, encoder=None, batch_size=8, second_judge=None, alignment_clip=None, people=None, report_name="",
    ) -> io.NodeOutput:  # fmt: skip
        models, where = (model_a, model_b), collection_of(people)
        for reward in (judge, second_judge):
            prepared(judge if reward is None else reward)
        how = {"steps": steps, "cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler} | {
            "width": width, "height": height
        }  # fmt: skip
        about = (prompts, negative, seeds, seed, how, batch_size)

        def evaluate() -> Evaluation:
            drawn = drawn_by(models, clip, vae, *about)
            return measured_in_full(models, drawn, judge, second_judge, clip, encoder, alignment_clip, batch_size)

        objects = (*models, clip, vae, judge, encoder, second_judge, alignment_clip)
        found = once(objects, about, bool(where), evaluate)
        found = replace(found, votes=asked(found.drawn, people))
        return shown(cls, found, report_of(found, where), report_name)


def shown(cls: type[io.ComfyNode], found: Evaluation, report: str, report_name: str) -> io.NodeOutput:
    drawn, result = found.drawn, found.result
    pairs = side_by_side(drawn.a, drawn.b, found.rewards, drawn.rows)
    plot = interval_plot({"B wins": result.win_rate}, "Share of pairs that B wins", 0.5, limits=(0, 1))
    image = picture_of(found, report, pairs)
    told = report
    if report_name.strip():
        told += f"\nReport: {save_page(report_name.strip(), page_of(found, report))} in the output folder."
    # Who votes should not see in passing whose picture is whose: until the votes are in, the node shows the plot.
    preview = ui.PreviewImage(plot if voting(found.votes) else pairs, cls=cls).as_dict() | {"text": (told,)}
    return io.NodeOutput(
        pairs, plot, told, result.win_rate.value, result.gain.value, figures(found), image, found.alarm, ui=preview,
    )  # fmt: skip


NODES: list[type[io.ComfyNode]] = [FeedbackEvaluate]
