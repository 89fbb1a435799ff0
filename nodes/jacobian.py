"""The denoiser of a running step once more: for a finite difference through it, or with a graph for its gradient."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..diffusion.process import Process, per_sample
from ..guidance.gradient import Transport, forward_difference
from .denoiser import WrongConnectionError, gradients, training_kernels
from .fitting import Fitting
from .network_parts import checkpointed
from .policy import check_weights, normal_cond, twin_of
from .slope_check import check_slope, check_whole

METHODS = ("fast", "difference", "full")

INSTEAD = "Set `gradient` to difference or fast, which need none."

WHO = "Reward guidance through the model"
"""Who needs the graphs, for the warning where they do not fit."""

GRAPH_MEMORY = 30.0
"""A denoiser whose graph is kept needs up to this much of what ComfyUI plans for a plain pass. Counted at full size:
13 for SD1.5 at 512 pixels, 29 for SDXL and 30 for Flux at 1024."""


def transport_of(
    method: str, args: dict[str, Any], process: Process, fitting: Fitting | None = None
) -> Transport | None:
    """What carries a slope at the clean estimate to x0, in a post-CFG hook with these args; None: the variance alone.

    It is the Jacobian of the model's own estimate: what others' pre- and post-CFG functions add is taken as fixed.
    fitting: remembers for a run how many pictures' graphs through the model fit into memory.
    """
    if method == "fast":
        return None
    if method == "difference":
        base = own_estimate(args)
        with torch.inference_mode(False), torch.no_grad():
            x, base, sigma = args["input"].clone(), base.clone(), args["sigma"].clone()
        return forward_difference(lambda moved: _again(args["model"], args, moved), x, base, sigma, process)
    return lambda slope: _through_the_network(args, slope, process, fitting or Fitting(WHO))


def _again(model: Any, args: dict[str, Any], x: Tensor) -> Tensor:
    """The estimate at x under the step's own conditions, without a graph."""
    with torch.inference_mode():
        conds = [args["cond"], args["uncond"]]
        denoised = evaluated(model, conds, args, x)
    return denoised.clone()


def evaluated(model: Any, conds: list[Any], args: dict[str, Any], x: Tensor) -> Tensor:
    """As `comfy.samplers.sampling_function` without the post-CFG functions, of which the caller is one, and without the
    pre-CFG functions: those may remember steps, as the momentum of APG does, so each of them sees a step once."""
    options, sigma = args["model_options"], args["sigma"]
    given = {"conds": conds, "input": x, "sigma": sigma, "model": model, "model_options": options}
    if "sampler_calc_cond_batch_function" in options:
        out = options["sampler_calc_cond_batch_function"](given)
    else:
        out = comfy.samplers.calc_cond_batch(model, conds, x, sigma, options)
    return _combined(model, args, out[0], out[1], x)


class StepOutputs:
    """The first pre-CFG function of a model: keeps what the denoiser said in a step, before others change it."""

    def __init__(self) -> None:
        self._x: Tensor | None = None
        self._out: list[Tensor] = []

    def __call__(self, args: dict[str, Any]) -> list[Tensor]:
        self._x, self._out = args["input"], [out.clone() for out in args["conds_out"]]
        return args["conds_out"]

    def of(self, x: Tensor) -> list[Tensor] | None:
        """Each side's estimate at this very x; None for another step's."""
        return self._out if self._x is x else None

    def release(self) -> None:
        self._x, self._out = None, []


def keep_outputs(model: ModelPatcher) -> None:
    """Lets `own_estimate` know what the denoiser said, whatever pre-CFG functions the model has or is yet to get."""
    hooks = model.model_options.get("sampler_pre_cfg_function", [])
    if not any(isinstance(hook, StepOutputs) for hook in hooks):
        model.model_options["sampler_pre_cfg_function"] = [StepOutputs(), *hooks]


def release_outputs(model: ModelPatcher) -> None:
    for hook in model.model_options.get("sampler_pre_cfg_function", []):
        if isinstance(hook, StepOutputs):
            hook.release()


def own_estimate(args: dict[str, Any]) -> Tensor:
    """What `evaluated` gives for the step's own conditions and input, in a post-CFG function with these args, without
    asking the model again. Needs `keep_outputs` where the model has other pre-CFG functions."""
    hooks = args["model_options"].get("sampler_pre_cfg_function", [])
    kept = [hook.of(args["input"]) for hook in hooks if isinstance(hook, StepOutputs)]
    cond, uncond, *_ = next((out for out in kept if out), [args["cond_denoised"], args["uncond_denoised"]])
    return _combined(args["model"], args, cond, uncond, args["input"])


def _combined(model: Any, args: dict[str, Any], cond: Tensor, uncond: Tensor, x: Tensor) -> Tensor:
    """Classifier-free guidance as the run does it."""
    options = {key: value for key, value in args["model_options"].items() if key != "sampler_post_cfg_function"}
    scale, sigma = args["cond_scale"], args["sigma"]
    return comfy.samplers.cfg_function(
        model, cond, uncond, scale, x, sigma, options, cond=args["cond"], uncond=args["uncond"]
    )


# --- the full gradient -----------------------------------------------------------------------------------------------


def _through_the_network(args: dict[str, Any], slope: Tensor, process: Process, fitting: Fitting) -> Tensor:
    """`s^2/a * J^T slope`: one more pass with a graph, and the way back through it, of as many pictures at a time as
    fit into memory."""
    model = args["model"]
    check_whole(model, args["input"].device, INSTEAD)
    planned = graphs_at_once(model, args["input"])
    return fitting.run(lambda at_once: _carried(args, slope, process, at_once), lambda: planned)


def _carried(args: dict[str, Any], slope: Tensor, process: Process, at_once: int) -> Tensor:
    model = args["model"]
    with gradients(), training_kernels():
        x = args["input"].clone().float().requires_grad_()
        twin = twin_of(model)
        twin.current_patcher = model.current_patcher
        if at_once < len(x):
            checkpointed(twin, at_once)
        known: dict[int, Any] = {}
        conds = [normal_conds(cond, known, x.device) for cond in (args["cond"], args["uncond"])]
        own = args | {"sigma": args["sigma"].clone(), "cond": conds[0], "uncond": conds[1]}
        denoised = evaluated(twin, conds, own, x)
        (carried,) = torch.autograd.grad(denoised, x, slope.to(denoised))
        sigma = own["sigma"]
        return per_sample(process.s(sigma) ** 2 / process.a(sigma), x) * carried


def check_step(args: dict[str, Any]) -> None:
    """For the first full step of a run. Raises WrongConnectionError where its gradient would be a wrong one."""
    check_whole(args["model"], args["input"].device, INSTEAD)
    cond, *_ = [*(args["cond"] or ()), *(args["uncond"] or ())]
    check_slope(args["model"], cond, args["input"], args["sigma"], INSTEAD)


def normal_conds(conds: Any, known: dict[int, Any], device: torch.device) -> Any:
    """A side's conditions with tensors that may take part in a graph. A ControlNet's part in them is held fixed."""
    if conds is None:
        return None
    return [_normal_cond(cond, known, device) for cond in conds]


def _normal_cond(cond: dict[str, Any], known: dict[int, Any], device: torch.device) -> dict[str, Any]:
    made = dict(cond)
    made["model_conds"] = {name: normal_cond(value, device) for name, value in cond["model_conds"].items()}
    if isinstance(mask := cond.get("mask"), Tensor):
        made["mask"] = mask.clone()
    if (control := cond.get("control")) is not None:
        made["control"] = known.setdefault(id(control), _FixedControl(control))
    return made


class _FixedControl:
    """A ControlNet whose answer carries no gradient: its own weights are not ours to alias."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def get_control(self, x: Tensor, *args: Any) -> Any:
        with torch.no_grad():
            found = self._control.get_control(x.detach(), *args)
        if found is None:
            return None
        return {key: [None if one is None else _Added.of(one.clone()) for one in ones] for key, ones in found.items()}


class _Added(Tensor):
    """What a ControlNet adds, to a copy: the network's own `+=` would write over what the backward pass needs."""

    @staticmethod
    def of(tensor: Tensor) -> _Added:
        return tensor.as_subclass(_Added)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        plain = [one.as_subclass(Tensor) if isinstance(one, _Added) else one for one in args]
        if func in (Tensor.__iadd__, Tensor.add_):
            return plain[0] + plain[1]
        return func(*plain, **(kwargs or {}))


def graphs_at_once(model: comfy.model_base.BaseModel, x: Tensor) -> int:
    """How many pictures' graphs through the model fit into free memory, of x (B, ...).

    Raises WrongConnectionError when not even one does.
    """
    needed = GRAPH_MEMORY * model.memory_required([2, *x.shape[1:]])
    free = comfy.model_management.get_free_memory(x.device)
    if needed > free:
        raise WrongConnectionError(
            f"The full gradient needs about {needed / 2**30:.1f} GiB for one picture of this size, and "
            f"{free / 2**30:.1f} GiB are free. Set `gradient` to difference or fast, or make smaller pictures."
        )
    return min(len(x), int(free / max(needed, 1)))


def check_method(method: str, model: ModelPatcher) -> None:
    """Raises WrongConnectionError for an unknown method, and for a full gradient through quantised weights."""
    if method not in METHODS:
        raise WrongConnectionError(f"Unknown gradient '{method}'. Choose one of: {', '.join(METHODS)}.")
    if method == "full":
        try:
            check_weights(model.model.diffusion_model)
        except WrongConnectionError as error:
            raise WrongConnectionError(f"{error} Or set `gradient` to difference or fast, which need none.") from error
