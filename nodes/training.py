"""FeedbackTrainLora: ratings of pictures become a LoRA."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
from torch import Tensor

from ..feedback.records import Feedback, ModelRun
from ..training import lora_files, runs
from ..training.adapters import LAYERS, Layers, MovingAverage
from ..training.loop import Plan, Step, train
from ..training.low_rank import Part
from ..training.objectives import Nft, Objective, Sft
from ..training.progress import Progress
from ..training.sources import Example, ForwardSource
from .compat import FEEDBACK, REWARD, data_directory, io, store, ui
from .decoder import check_vae
from .examples import Sampling, encode_pictures, encode_prompts, examples, rated_pictures, scored_pictures
from .plots import line_plot
from .policy import Policy, trainable
from .sampling import Conditioning, check_prompts

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

OBJECTIVES: dict[str, Callable[..., Objective]] = {"SFT": Sft, "NFT": Nft}
ONLY_RATED, MORE = "rated pictures only", "and more, scored by a reward"


@dataclass
class Training:
    """One LoRA in the making: where it goes, what is said in it, and how far it is."""

    model: ModelPatcher
    name: str
    about: dict[str, Any]
    run: runs.Run
    losses: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, model: ModelPatcher, name: str, about: dict[str, Any]) -> Training:
        """Raises ValueError for a name that is no plain file name."""
        path = free_lora(name)
        return cls(model, path.stem, about, runs.Run(data_directory() / "runs" / path.stem))

    def follow(self, policy: Policy, source: ForwardSource, objective: Objective, plan: Plan) -> dict[str, Part]:
        """Trains to the end and gives the moving average. What was learned before an interrupt or error is saved."""
        average = MovingAverage(policy.parameters())
        bar = comfy.utils.ProgressBar(plan.steps)

        def on_step(step: Step) -> None:
            self.losses.append(step.loss)
            if self.run.due(step.done):
                self.checkpoint(policy.adapters.low_rank(average.values))
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(step.done)

        try:
            train(policy, source, objective, plan, Progress(policy.parameters(), average, policy.adapters), on_step)
        except BaseException:  # ComfyUI's interrupt is no Exception; nor may an hour be lost to whatever else happens
            if average.steps:
                self.save(policy.adapters.low_rank(average.values), f"{self.name}_stopped_at_{average.steps}")
            raise
        return policy.adapters.low_rank(average.values)

    def checkpoint(self, layers: dict[str, Part]) -> None:
        self.run.save(len(self.losses), {"lora": lora_files.to_tensors(layers)}, self.about)

    def save(self, layers: dict[str, Part], name: str) -> Path:
        """Writes models/loras/<name>.safetensors and makes sure that ComfyUI's loader takes all of it."""
        path = lora_folder() / f"{name}.safetensors"
        known = comfy.lora.model_lora_keys_unet(self.model.model, {})
        about = lora_files.metadata(name, architecture(self.model), layers, self.about | {"steps": len(self.losses)})
        path.parent.mkdir(parents=True, exist_ok=True)
        lora_files.save(path, layers, about, known)
        return path


def lora_folder() -> Path:
    """ComfyUI's first folder for LoRAs."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def free_lora(name: str) -> Path:
    """models/loras/<name>_00001.safetensors, the first number that is free. Raises ValueError for an unsafe name."""
    if not re.fullmatch(r"\w[\w .-]{0,99}", name) or name.endswith((".", " ")):
        raise ValueError(f"The name {name!r} is no file name: use letters, digits, spaces, dots, - and _.")
    return lora_files.free_path(lora_folder(), name)


def architecture(model: ModelPatcher) -> str:
    """The model family's name for the file's metadata: ComfyUI's class of the configuration."""
    return type(model.model.model_config).__name__.lower()


def with_lora(model: ModelPatcher, tensors: dict[str, Tensor]) -> ModelPatcher:
    """The MODEL as the stock loader would make it. Raises LoraFileError when a layer was not taken."""
    applied, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    layers = {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}
    if left := {f"{layer}.weight" for layer in layers} - set(applied.patches):
        raise lora_files.LoraFileError(f"ComfyUI's loader left out {len(left)} layers, one is {sorted(left)[0]}.")
    return applied


def summary(training: Training, pictures: int, path: Path) -> str:
    tenth = max(1, len(training.losses) // 10)
    first, last = (sum(part) / tenth for part in (training.losses[:tenth], training.losses[-tenth:]))
    return (
        f"{path.name}: {len(training.losses)} steps on {pictures} pictures, mean loss of the first tenth {first:.4g}, "
        f"of the last {last:.4g}"
    )


class FeedbackTrainLora(io.ComfyNode):
    """Trains a LoRA on what people rated."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackTrainLora",
            display_name="Train LoRA from feedback",
            category="feedback/training",
            search_aliases=["fine-tune", "RLHF", "reward-weighted", "NFT", "lora training", "learn from ratings"],
            description=(
                "Trains a LoRA that makes the model's pictures more like those you rated high. It is saved in "
                "models/loras and loads with any LoRA loader. Cancelling keeps what was learned so far."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that made the rated pictures; it stays as it is."),
                FEEDBACK.Input("feedback", tooltip="Which ratings to learn from: connect Collect feedback."),
                io.Clip.Input("clip", tooltip="The model's text encoder; each prompt is encoded once."),
                io.Vae.Input("vae", tooltip="The model's VAE; each picture is encoded once."),
                io.DynamicCombo.Input(
                    "objective",
                    tooltip="SFT learns from the good pictures, best with few ratings; NFT also flees the bad ones.",
                    options=[
                        io.DynamicCombo.Option("SFT", _sft_inputs()),
                        io.DynamicCombo.Option("NFT", _nft_inputs()),
                    ],
                ),
                io.DynamicCombo.Input(
                    "pictures",
                    tooltip="Train on the rated pictures alone, or make more of the same prompts as well.",
                    options=[
                        io.DynamicCombo.Option(ONLY_RATED, []),
                        io.DynamicCombo.Option(MORE, _more_inputs()),
                    ],
                ),
                io.Int.Input(
                    "steps", default=400, min=1, max=100_000,
                    tooltip="How often the weights change; 200 to 1000 are usual, too many make pictures alike.",
                ),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-7, max=0.1, step=1e-6, round=False,
                    tooltip="How far the first steps go; it falls to 0. 1e-4 for real models, 1e-3 for tiny ones.",
                ),
                io.Int.Input(
                    "batch", default=8, min=1, max=1024,
                    tooltip="Pictures a step. Worked off in smaller parts by itself where memory is short.",
                ),
                io.Int.Input(
                    "rank", default=16, min=1, max=1024,
                    tooltip="How much the LoRA can hold. 16 is plenty for a taste; file size grows with it.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                    tooltip="The same seed, ratings and settings give the same LoRA on the same machine.",
                ),
                io.String.Input(
                    "name", default="feedback",
                    tooltip="Saved as models/loras/<name>_00001.safetensors; the number grows with each run.",
                ),
                io.Combo.Input(
                    "layers", options=list(LAYERS), default="all", advanced=True,
                    tooltip="all: linear and convolution layers. linear: no convolutions. attention: the mildest.",
                ),
            ],
            outputs=[
                io.Custom("LORA_MODEL").Output("lora", tooltip="The LoRA, for core's LoRA model loader and Save LoRA."),
                io.Custom("LOSS_MAP").Output("loss", tooltip="The loss of every step, for core's Plot Loss Graph."),
                io.Model.Output("trained_model", display_name="model", tooltip="The model with the LoRA."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, feedback, clip, vae, objective, pictures, name, seed, layers: Layers = "all", **numbers
    ) -> io.NodeOutput:
        check_vae(vae, model)
        goal, about = goal_of(objective)
        training = Training.start(model, name, about | numbers | {"seed": seed, "layers": layers})
        learned, conds = material(model, feedback, clip, vae, goal, pictures, seed)
        with trainable(model, numbers["rank"], seed, layers) as policy:
            source = ForwardSource(learned, conds, policy.process, policy.sigma_at, numbers["batch"], seed)
            result = training.follow(policy, source, goal, Plan(numbers["steps"], numbers["learning_rate"]))
        path = training.save(result, training.name)
        note(training, feedback, path)
        tensors = lora_files.to_tensors(result)
        curve = ui.PreviewImage(line_plot({"loss": training.losses}, f"Loss of {path.stem}"), cls=cls).as_dict()
        shown = curve | {"text": (summary(training, len(learned), path),), "lora": (path.name,)}
        return io.NodeOutput(tensors, {"loss": training.losses}, with_lora(model, tensors), ui=shown)


def goal_of(chosen: dict[str, Any]) -> tuple[Objective, dict[str, Any]]:
    """The objective that a DynamicCombo's value names, and the same as it is written into the file."""
    kind = chosen["objective"]
    settings = {key: value for key, value in chosen.items() if key != "objective"}
    return OBJECTIVES[kind](**settings), {"objective": kind, **settings}


def material(
    model: ModelPatcher, feedback: Feedback, clip: Any, vae: Any, goal: Objective, pictures: dict[str, Any], seed: int
) -> tuple[list[Example], dict[str, Conditioning]]:
    """Every picture to train on, encoded once, and every prompt."""
    sources = [rated_pictures(store(), feedback)]
    conds = encode_prompts(clip, sources[0].prompts)
    check_prompts(model, conds.values())
    if pictures["pictures"] == MORE:
        sources.append(scored_pictures(model, vae, conds, sources[0], **_more(pictures, seed)))
    latents = encode_pictures(model, vae, [image for source in sources for image in source.images])
    return examples(sources, latents, goal), conds


def note(training: Training, feedback: Feedback, path: Path) -> None:
    """Writes into the store from which ratings the LoRA came, and how."""
    kept = store()
    if kept.read_only is None:
        data = "".join(sorted(rating.rating_id for rating in kept.rated(feedback)))
        settings = asdict(feedback) | training.about
        metrics = {"losses": training.losses}
        digest = hashlib.sha256(data.encode()).hexdigest()
        run = ModelRun("lora", path.name, feedback.revision, digest, settings, metrics, runs.digest(path))
        kept.add_model_run(run)


def _sft_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "tau", default=1.0, min=0.05, max=10.0, step=0.05,
            tooltip="How many standard deviations of rating make a picture count 2.7 times as much. Lower is greedier.",
        ),
    ]  # fmt: skip


def _nft_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "beta", default=1.0, min=0.05, max=10.0, step=0.05,
            tooltip="The lower, the further the LoRA moves for the same ratings.",
        ),
        io.Float.Input(
            "kl", default=1e-3, min=0.0, max=10.0, step=1e-4, round=False,
            tooltip="Pull back to the model as it was; raise it if pictures lose quality or become alike.",
        ),
    ]  # fmt: skip


def _more_inputs() -> list[io.Input]:
    return [
        REWARD.Input("reward", tooltip="Scores the new pictures, for example a taste learned from the same ratings."),
        io.Int.Input(
            "count", default=200, min=2, max=100_000, tooltip="How many new pictures, over all prompts in turn."
        ),
        io.Int.Input("sampling_steps", default=20, min=1, max=1000, tooltip="Sampling steps of a new picture."),
        io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="CFG that you usually sample with."),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.SAMPLER_NAMES,
            default="euler",
            tooltip="Sampler of the new pictures.",
        ),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="normal", tooltip="Its noise schedule."
        ),
    ]


def _more(chosen: dict[str, Any], seed: int) -> dict[str, Any]:
    how = Sampling(chosen["sampling_steps"], chosen["cfg"], chosen["sampler_name"], chosen["scheduler"], seed)
    return {"reward": chosen["reward"], "count": chosen["count"], "how": how}


NODES = [FeedbackTrainLora]
