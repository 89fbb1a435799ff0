"""A LoRA in the making: the name it gets, the run behind it, what is shown meanwhile, and its file."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.model_management
import comfy.sd
import folder_paths
from torch import Tensor, nn

from ..feedback.records import Feedback, ModelRun
from ..training import lora_files, runs
from ..training.adapters import MovingAverage
from ..training.following import Checks, Follower, History, fingerprint
from ..training.loop import Plan, Source, Step
from ..training.low_rank import Part
from ..training.objectives import Objective
from ..training.progress import Progress
from .compat import data_directory, store
from .policy import Policy

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass
class Training:
    """One LoRA and the run that makes it. settings: all that the result depends on; it goes on only with the same.

    handed_out: the weights of the finished LoRA, in the order of the parameters.
    """

    model: ModelPatcher
    policy: Policy
    name: str
    settings: dict[str, Any]
    follower: Follower
    resumed_at: int = field(default=0)
    told: list[str] = field(default_factory=list)
    handed_out: list[Tensor] | None = field(default=None)

    @classmethod
    def begin(
        cls, policy: Policy, name: str, settings: Mapping[str, Any], decay: float = 0.99, resume: bool = True
    ) -> Training:
        """Takes the first free number for the LoRA, or that of a run of the same settings that was put down.

        Raises ValueError for a name that is no plain file name.
        """
        told = dict(settings) | {"model": mark_of(policy)}
        stem, run = place(name, told, resume)
        progress = Progress(policy.parameters(), MovingAverage(policy.parameters(), decay), policy.adapters)
        made = cls(policy.model, policy, stem, told, Follower(run, progress, told))
        if resume and made.follower.resume():
            made.resumed_at = progress.step
        return made

    def tell(self, line: str) -> None:
        """Says it in the log now, and in the report at the end."""
        logging.info("Feedback Loop, %s: %s", self.name, line)
        self.told.append(line)

    @property
    def progress(self) -> Progress:
        return self.follower.progress

    @property
    def history(self) -> History:
        return self.follower.history

    def follow(
        self,
        source: Source,
        objective: Objective,
        plan: Plan,
        show: Callable[[Step, History], None],
        checks: Checks | None = None,
    ) -> dict[str, Part]:
        """Trains to the end and gives the moving average, the best one where there are checks.

        What was learned before an interrupt or error is saved as `<name>_stopped_at_<step>` and can be gone on with.
        """
        self.follower.show, self.follower.checks = show, checks
        try:
            self.follower.follow(self.policy, source, objective, plan)
        except BaseException:  # ComfyUI's interrupt is no Exception; nor may an hour be lost to whatever else happens
            self._keep_what_there_is()
            raise
        self.handed_out = self.follower.best_average()
        return self.policy.adapters.low_rank(self.handed_out)

    def shown(self) -> AbstractContextManager[None]:
        """The policy is what a LoRA of now would be: the moving average, after the end what was handed out."""
        return self.progress.average.shown(self.handed_out)

    def _keep_what_there_is(self) -> None:
        """Says in the log what else goes wrong: what ended the run is what its user has to know."""
        from safetensors import SafetensorError

        try:
            self.keep_what_there_is()
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # a full disk, a damaged file
            logging.getLogger(__name__).warning("What %s had learned was not saved: %s", self.name, error)

    def keep_what_there_is(self) -> None:
        """The moving average as a LoRA of its own name, unless nothing was learned or it is there already."""
        name = f"{self.name}_stopped_at_{self.progress.step}"
        if self.progress.average.steps and not (lora_folder() / f"{name}.safetensors").exists():
            self.save(self.policy.adapters.low_rank(self.progress.average.values), name)

    def save(self, layers: Mapping[str, Part], name: str) -> Path:
        """Writes models/loras/<name>.safetensors and makes sure that ComfyUI's loader takes all of it."""
        path = lora_folder() / f"{name}.safetensors"
        known = comfy.lora.model_lora_keys_unet(self.model.model, {})
        about = lora_files.metadata(name, architecture(self.model), layers, self.settings | {"steps": self.steps()})
        path.parent.mkdir(parents=True, exist_ok=True)
        lora_files.save(path, layers, about, known)
        return path

    def steps(self) -> int:
        return len(self.history.losses)

    def note(self, feedback: Feedback | None, path: Path) -> None:
        """Writes into the store from which ratings the LoRA came, None for a reward's, and how."""
        kept = store()
        if kept.read_only is None:
            revision = (kept.feedback() if feedback is None else feedback).revision
            settings = ({} if feedback is None else asdict(feedback)) | self.settings
            metrics = {"losses": self.history.losses, "held_out": self.history.checks, "epochs": self.history.epochs}
            data = str(self.settings.get("data", ""))
            kept.add_model_run(ModelRun("lora", path.name, revision, data, settings, metrics, runs.digest(path)))


def place(name: str, settings: Mapping[str, Any], resume: bool) -> tuple[str, runs.Run]:
    """(`<name>_00001`, its run): the first number without a LoRA whose run is new, or the same run to be gone on with.

    Raises ValueError for an unsafe name.
    """
    number, same = 1, fingerprint(settings)
    while True:
        stem = f"{checked_name(name)}_{number:05}"
        if not (lora_folder() / f"{stem}.safetensors").exists():
            run = runs.Run(data_directory() / "runs" / stem)
            latest = run.latest()
            if latest is None or (resume and runs.about(latest).get("fingerprint") == same):
                return stem, run
        number += 1


def checked_name(name: str) -> str:
    """The name. Raises ValueError for one that is no plain file name."""
    if not re.fullmatch(r"\w[\w .-]{0,99}", name) or name.endswith((".", " ")):
        raise ValueError(f"The name {name!r} is no file name: use letters, digits, spaces, dots, - and _.")
    return name


def lora_folder() -> Path:
    """ComfyUI's first folder for LoRAs."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def architecture(model: ModelPatcher) -> str:
    """The model family's name for the file's metadata: ComfyUI's class of the configuration."""
    return type(model.model.model_config).__name__.lower()


def mark_of(policy: Policy) -> str:
    """Some of the base model's weights as a hash: another model, or another LoRA on it, is another run."""
    digest = hashlib.sha256(architecture(policy.model).encode())
    adapter = {id(p) for p in policy.parameters()}
    weights = [w for w in policy.inner.diffusion_model.parameters() if id(w) not in adapter and _is_plain(w)]
    for weight in weights[:: max(1, len(weights) // 16)]:
        digest.update(weight.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _is_plain(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter)


def with_lora(model: ModelPatcher, tensors: dict[str, Tensor]) -> ModelPatcher:
    """The MODEL as the stock loader would make it. Raises LoraFileError when a layer was not taken."""
    applied, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    layers = {f"{path}.weight" for path in lora_files.layer_paths(tensors)}
    if left := layers - set(applied.patches):
        raise lora_files.LoraFileError(f"ComfyUI's loader left out {len(left)} layers, one is {sorted(left)[0]}.")
    return applied


def summary(training: Training, path: Path, what: str) -> str:
    """One or two sentences about a finished run."""
    losses = training.history.losses
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    text = (
        f"{path.name}: {len(losses)} steps on {what}, mean loss of the first tenth {first:.4g}, of the last {last:.4g}"
    )
    if training.resumed_at:
        text += f"; gone on from step {training.resumed_at}"
    return "\n".join([text, *training.told, *training.history.events])
