"""The command line of training/distributed.py, and what its values mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..feedback.rewards.base import Reward
from ..feedback.rewards.clip_folder import clip_encoders
from ..feedback.rewards.colour import PROPERTIES, ColourReward
from ..feedback.rewards.files import load_reward, read_header
from ..feedback.rewards.watermark import WatermarkPenalty
from .objectives import Nft, Objective, Sft
from .policy_gradient import Awm
from .preferences import Dpo, Kto

OFFLINE: dict[str, type[Objective]] = {"sft": Sft, "nft": Nft, "dpo": Dpo, "kto": Kto}
ONLINE: dict[str, type[Objective]] = {"nft": Nft, "awm": Awm}
RATES = {"dpo": 2e-5, "kto": 2e-5}
RATE = 1e-4
OF_OBJECTIVES = ("tau", "beta", "kl", "kl_old", "clip")
WATERMARK = "watermark"


class OptionError(ValueError):
    """An option that can't be, or not with the others; the message says what to give instead."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m torch.distributed.run --nproc_per_node N -m feedback_loop.training.distributed",
        description="Trains a LoRA of a diffusers pipeline on feedback that was exported from ComfyUI, or on what it "
        "draws itself and a reward scores, on as many devices as torchrun starts processes for.",
    )
    made.add_argument("--pipeline", type=Path, required=True, metavar="FOLDER", help="a pipeline as diffusers saves it")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="the LoRA: a new .safetensors file")
    made.add_argument(
        "--feedback",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="what Export feedback wrote",
    )
    made.add_argument("--objective", required=True, choices=sorted({*OFFLINE, *ONLINE}), help="see the documentation")
    _add_data(made.add_argument_group("feedback"))
    _add_training(made.add_argument_group("training"))
    _add_objectives(made.add_argument_group("objectives"))
    _add_online(made.add_argument_group("online, with a reward"))
    return made


def _add_data(group: Any) -> None:
    group.add_argument("--axis", default="overall", help="which axis of the ratings (default: %(default)s)")
    group.add_argument("--raters", nargs="+", default=[], metavar="NAME", help="only what these people said")


def _add_training(group: Any) -> None:
    group.add_argument("--steps", type=_whole, default=400, help="how often the weights change (default: %(default)s)")
    group.add_argument(
        "--batch", type=_whole, default=8, help="pictures a step, or pairs, over all processes (default: %(default)s)"
    )
    group.add_argument("--rank", type=_whole, default=16, help="how much the LoRA can hold (default: %(default)s)")
    group.add_argument("--layers", default="all", help="all, linear, attention, or patterns as *attn2*,*ff*")
    group.add_argument("--learning-rate", type=_positive, help=f"default: {RATE:g}; for DPO and KTO {RATES['dpo']:g}")
    group.add_argument("--seed", type=_from_zero, default=0, help="default: %(default)s")
    group.add_argument("--ema", type=_share, default=0.99, help="moving average that is saved (default: %(default)s)")
    group.add_argument("--resume", type=Path, metavar="FOLDER", help="go on from the checkpoints in this folder")
    group.add_argument("--every", type=_whole, default=200, help="steps between checkpoints (default: %(default)s)")
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="what the network computes in")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory for more time")
    group.add_argument("--accumulation", type=_whole, default=1, help="work a process's share off in so many parts")
    group.add_argument("--cpu", action="store_true", help="stay on the CPU")


def _add_objectives(group: Any) -> None:
    group.add_argument("--tau", type=_positive, help="SFT: the lower, the greedier")
    group.add_argument("--beta", type=_from_zero_float, help="NFT, DPO, KTO: how hard it is held to the model")
    group.add_argument("--kl", type=_from_zero_float, help="SFT, NFT, AWM: pull to the model as it was")
    group.add_argument("--kl-old", type=_positive, help="AWM: pull to the model that drew the pictures")
    group.add_argument("--clip", type=_positive, help="AWM: how far a ratio may move")


def _add_online(group: Any) -> None:
    group.add_argument(
        "--reward", metavar="REWARD",
        help=f"train online: a file that Save reward wrote, {WATERMARK}, or more:NAME or less:NAME with one of "
        f"{', '.join(PROPERTIES)}",
    )  # fmt: skip
    group.add_argument(
        "--encoder", type=Path, metavar="FOLDER", help="the CLIP that a taste looks through, as transformers saves it"
    )
    group.add_argument("--prompts", type=Path, metavar="FILE", help="a text file, a prompt a line; else the feedback's")
    group.add_argument("--updates", type=_whole, default=4, help="steps from one drawing to the next")
    group.add_argument("--prompts-per-epoch", type=_whole, default=8, help="prompts a drawing (default: %(default)s)")
    group.add_argument("--group-size", type=_whole, default=4, help="pictures of each (default: %(default)s)")
    group.add_argument("--sampling-steps", type=_whole, default=20, help="default: %(default)s")
    group.add_argument("--cfg", type=_from_zero_float, default=5.0, help="default: %(default)s")
    group.add_argument("--width", type=_whole, default=512, help="pixels (default: %(default)s)")
    group.add_argument("--height", type=_whole, default=512, help="pixels (default: %(default)s)")


def _number(text: str, kind: type, least: float, above: bool = False, most: float = 1e9) -> Any:
    try:
        value = kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of this kind") from error
    if not (value > least if above else value >= least) or value > most:
        raise argparse.ArgumentTypeError(f"{text} is out of range")
    return value


def _whole(text: str) -> int:
    return _number(text, int, 1)


def _from_zero(text: str) -> int:
    return _number(text, int, 0, most=2**63 - 1)


def _positive(text: str) -> float:
    return _number(text, float, 0, above=True)


def _from_zero_float(text: str) -> float:
    return _number(text, float, 0)


def _share(text: str) -> float:
    return _number(text, float, 0, most=0.9999)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what depends on others filled in. Raises OptionError, FileExistsError."""
    given = parser().parse_args(arguments)
    if given.out.suffix != ".safetensors":
        raise OptionError(f"--out has to end in .safetensors, and {given.out} does not.")
    if given.out.exists():
        raise FileExistsError(f"{given.out} is there already, and nothing is written over it: give another --out.")
    if not given.out.absolute().parent.is_dir():
        raise OptionError(f"--out: there is no folder {given.out.absolute().parent}.")
    for path in (*given.feedback, *([given.prompts] if given.prompts else ())):
        if not path.is_file():
            raise OptionError(f"There is no file {path}.")
    _check_kind(given)
    given.learning_rate = given.learning_rate or RATES.get(given.objective, RATE)
    return given


def _check_kind(given: argparse.Namespace) -> None:
    if given.reward is None:
        if given.objective not in OFFLINE:
            raise OptionError(f"{given.objective.upper()} learns from pictures that are drawn anew: give a --reward.")
        if not given.feedback:
            raise OptionError("Give --feedback, a file that Export feedback wrote, or a --reward to train online.")
        for name in ("prompts", "encoder"):
            if getattr(given, name):
                raise OptionError(f"--{name} is for training online: give a --reward as well, or leave it out.")
        return
    if given.objective not in ONLINE:
        raise OptionError(f"{given.objective.upper()} learns from feedback and not from a reward: leave --reward out.")
    if not given.feedback and not given.prompts:
        raise OptionError("Give --prompts, a text file with a prompt a line, or --feedback to take its prompts.")


def objective_of(given: argparse.Namespace) -> tuple[Objective, dict[str, Any]]:
    """The objective, and its settings as they are written into the file. Raises OptionError for another's option."""
    online = given.reward is not None
    kind = (ONLINE if online else OFFLINE)[given.objective]
    told = {name: value for name in OF_OBJECTIVES if (value := getattr(given, name)) is not None}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if foreign := [name for name in told if name not in known]:
        raise OptionError(f"--{foreign[0].replace('_', '-')} is no option of {given.objective.upper()}.")
    more = {"limit": 5.0, "old": "old"} if online and kind is Nft else {}
    if kind is Kto and told.get("beta") == 0 or kind is Nft and told.get("beta") == 0:
        raise OptionError(f"--beta of {given.objective.upper()} has to be above 0.")
    return kind(**told, **more), {"objective": given.objective.upper(), **told}


def reward_of(text: str, encoder: Path | None = None) -> Reward:
    """The reward that --reward names, with the image encoder of --encoder. Raises OptionError, RewardError."""
    path = Path(text)
    if encoder is not None and not path.is_file():
        raise OptionError(f"--encoder is for a reward in a file, such as a taste, and {text} is none: leave it out.")
    if text == WATERMARK:
        return WatermarkPenalty()
    aim, _, name = text.partition(":")
    if aim in ("more", "less") and name in PROPERTIES:
        return ColourReward(name, 1 if aim == "more" else -1)
    if not path.is_file():
        raise OptionError(
            f"--reward {text}: there is no such file, and it is neither {WATERMARK} nor more: or less: with one of "
            f"{', '.join(PROPERTIES)}."
        )
    return _from_file(path, encoder)


def _from_file(path: Path, encoder: Path | None) -> Reward:
    wanted = read_header(path)["settings"].get("encoder")
    if wanted is None or encoder is None:
        if wanted is not None:
            raise OptionError(
                f"--reward {path}: it looks at pictures through the image encoder {wanted}. Give --encoder, the folder "
                "of that CLIP as transformers saves it: config.json and model.safetensors."
            )
        return load_reward(path)
    known = clip_encoders(encoder)
    if wanted not in [one.id for one in known]:
        raise OptionError(
            f"--encoder {encoder}: {path} was made with the image encoder {wanted}, and that folder's is "
            f"{known[0].id}. Give the CLIP whose weights ComfyUI loaded as CLIP_VISION."
        )
    return load_reward(path, known)


def prompts_in(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises OptionError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--prompts: {path} can't be read as text: {error}.") from error
    if not any(lines):
        raise OptionError(f"--prompts: {path} has no line with words.")
    return [line for line in lines if line]
