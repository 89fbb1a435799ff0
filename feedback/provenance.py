"""How a picture was made, read from the graph that ran: prompt, seed, sampler settings, model and LoRAs.

The walk goes upstream from the node that captured the picture to the last sampler on its way. What is not found is
None; so is what has more than one answer, such as the seed of a picture blended from two samplers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

from .conditioning import prompt_of
from .graph import MAX_DEPTH, Graph, Link
from .records import Lora, Provenance

T = TypeVar("T")

PICTURES = re.compile(
    r"(images?|imgs?|pixels|samples|latents?|frames|video|source|destination)(_?(image|latent|to|from))?_?\d*"
)
NO_PICTURES = re.compile(
    r"(.*_)?(model|vae|clip|clip_vision|control_net|masks?|positive|negative|conditioning|sigmas)\d*"
)
SEEDS = ("seed", "noise_seed")
POSITIVE = ("positive", "conditioning", "cond", "positive_conditioning", "positive_cond")
NEGATIVE = ("negative", "neg_conditioning", "negative_conditioning", "uncond", "negative_cond")
CHECKPOINTS = ("ckpt_name", "unet_name", "model_name", "model_path", "base_ckpt_name", "gguf_name", "model")
MODEL_NODES = {"FeedbackDemoModel": "FeedbackDemoModel"}  # loaders that know only one model

SAMPLER_NODES = {
    "SamplerEulerAncestral": "euler_ancestral",
    "SamplerEulerAncestralCFGPP": "euler_ancestral_cfg_pp",
    "SamplerEulerCFGpp": "euler_cfg_pp",
    "SamplerLMS": "lms",
    "SamplerLCM": "lcm",
    "SamplerDPMPP_3M_SDE": "dpmpp_3m_sde",
    "SamplerDPMPP_2M_SDE": "dpmpp_2m_sde",
    "SamplerDPMPP_SDE": "dpmpp_sde",
    "SamplerDPMPP_2S_Ancestral": "dpmpp_2s_ancestral",
    "SamplerDPMAdaptative": "dpm_adaptive",
    "SamplerER_SDE": "er_sde",
    "SamplerSASolver": "sa_solver",
    "SamplerSEEDS2": "seeds_2",
}
PARTS_OF_SCHEDULES = ("SplitSigmas", "SplitSigmasDenoise", "FlipSigmas", "SetFirstSigma")
SCHEDULER_NODES = {
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "polyexponential",
    "LaplaceScheduler": "laplace",
    "SDTurboScheduler": "sd_turbo",
    "BetaSamplingScheduler": "beta",
    "VPScheduler": "vp",
    "AlignYourStepsScheduler": "align_your_steps",
    "GITSScheduler": "gits",
    "OptimalStepsScheduler": "optimal_steps",
    "LTXVScheduler": "ltxv",
    "Flux2Scheduler": "flux2",
}


def read(api_prompt: dict[str, Any], workflow: dict[str, Any] | None, node_id: str) -> Provenance:
    """How the pictures that came to node `node_id` were made. Nothing malformed raises; it is just not found.

    api_prompt: the graph that ran, in API format. workflow: the graph as drawn; nothing is read from it, because it
    can differ from what ran.
    """
    graph = Graph(api_prompt)
    samplers = _samplers(graph, node_id)
    if not samplers or None in samplers:
        return Provenance()
    found = [_settings(graph, sampler) for sampler in samplers if sampler is not None]
    return Provenance(**{field.name: _same(getattr(one, field.name) for one in found) for field in fields(Provenance)})


def _same(values: Iterable[T]) -> T | None:
    """The one value that all agree on, else None."""
    everything = list(values)
    return everything[0] if everything and all(value == everything[0] for value in everything) else None


def _samplers(graph: Graph, node: str) -> list[str | None]:
    """The last samplers above `node`, each once; None among them for a picture that no sampler made."""
    found: dict[str | None, None] = {}
    seen = {node}
    own = graph.link(node, "images")
    waiting = [own] if own else _picture_links(graph, node)
    while waiting:
        link = waiting.pop()
        if link is None:
            found[None] = None
        elif link.node not in seen:
            seen.add(link.node)
            if _is_sampler(graph, link.node):
                found[link.node] = None
            else:
                waiting += _picture_links(graph, link.node)
    return list(found)


def _picture_links(graph: Graph, node: str) -> list[Link | None]:
    """Where the node has its pictures from, by the names of its inputs; [None] if it has none from anywhere."""
    links = graph.links(node)
    pictures = [name for name in links if PICTURES.fullmatch(name)]
    unclear = [name for name in links if not NO_PICTURES.fullmatch(name) and graph.value(node, name) is None]
    return [graph.link(node, name) for name in pictures or unclear] or [None]


def _is_sampler(graph: Graph, node: str) -> bool:
    """Whether the names of its inputs are those of a node that makes pictures from noise."""
    names = set(graph.inputs(node))
    random = not names.isdisjoint((*SEEDS, "noise"))
    steps = not names.isdisjoint(("steps", "num_steps", "num_inference_steps", "sigmas"))
    how = ("sampler_name", "sampler", "scheduler", "cfg", "cfg_scale", "guider", *POSITIVE)
    whole_model = "prompt" in names and "noise" not in names  # a node that hides a model, often behind an API
    return random and ((steps and not names.isdisjoint(how)) or whole_model)


def _settings(graph: Graph, sampler: str) -> Provenance:
    guider = graph.link(sampler, "guider")
    guided = guider.node if guider else sampler
    checkpoint, loras = _model(graph, graph.link(guided, "model"), sampler)
    return Provenance(
        prompt=_prompt(graph, guided, (*POSITIVE, "positive_prompt", "prompt")),
        negative=_prompt(graph, guided, (*NEGATIVE, "negative_prompt")),
        seed=_seed(graph, sampler, {}),
        cfg=graph.number(guided, "cfg", "cfg_scale"),
        sampler=_sampler_name(graph, sampler),
        checkpoint=checkpoint,
        loras=loras,
        **_schedule(graph, sampler),
    )


def _prompt(graph: Graph, node: str, names: tuple[str, ...]) -> str | None:
    """The text behind the first of these inputs that the node has; DualCFGGuider's two conditionings are joined."""
    if {"cond1", "cond2"} <= set(graph.links(node)) and names[0] == "positive":
        return prompt_of(graph, graph.link(node, "cond1"), graph.link(node, "cond2"))
    for name in names:
        if (text := graph.text(node, name)) is not None:
            return text
        if (link := graph.link(node, name)) is not None:
            return prompt_of(graph, link)
    return None


def _seed(graph: Graph, sampler: str, known: dict[str, str | None]) -> str | None:
    """The seed of the noise; a sampler that adds none goes on with the noise of the one before it."""
    if sampler not in known:
        known[sampler] = None  # what a circle leads back to
        known[sampler] = _seed_here(graph, sampler, known)
    return known[sampler]


def _seed_here(graph: Graph, sampler: str, known: dict[str, str | None]) -> str | None:
    noise = graph.link(sampler, "noise")
    source = noise.node if noise else sampler
    if graph.value(sampler, "add_noise") in (False, "disable") or graph.kind(source) == "DisableNoise":
        before = graph.link(sampler, "latent_image") or graph.link(sampler, "samples")
        if before is None or len(known) > MAX_DEPTH:
            return None
        above = [before.node] if _is_sampler(graph, before.node) else _samplers(graph, before.node)
        return _same(None if one is None else _seed(graph, one, known) for one in above)
    seed = graph.whole(source, *SEEDS)
    return str(seed) if seed is not None and 0 <= seed < 2**64 else None


def _sampler_name(graph: Graph, sampler: str) -> str | None:
    """The name as KSampler lists it."""
    if (name := graph.text(sampler, "sampler_name", "sampler")) is not None:
        return name
    chain = _chain(graph, graph.link(sampler, "sampler"), "sampler")
    if not chain:
        return None
    node = chain[-1]
    if (name := graph.text(node, "sampler_name", "sampler")) is not None:
        return name
    name = SAMPLER_NODES.get(graph.kind(node))
    return f"{name}_gpu" if name and graph.value(node, "noise_device") == "gpu" else name


def _schedule(graph: Graph, sampler: str) -> dict[str, Any]:
    """steps, scheduler and denoise, from the sampler or from the SIGMAS that it is given.

    Of a part of a schedule the whole one's steps are told, as KSamplerAdvanced does; its denoise would mislead.
    """
    chain = _chain(graph, graph.link(sampler, "sigmas"), "sigmas") or [sampler]
    node, changed = chain[-1], chain[:-1]
    known = all(graph.kind(one) in PARTS_OF_SCHEDULES for one in changed)
    return {
        "steps": _steps(graph, node) if known else None,
        "scheduler": graph.text(node, "scheduler") or SCHEDULER_NODES.get(graph.kind(node)) if known else None,
        "denoise": None if changed else graph.number(node, "denoise", "denoise_strength"),
    }


def _steps(graph: Graph, node: str) -> int | None:
    if graph.kind(node) == "ManualSigmas":
        listed = re.findall(r"[-+]?(?:\d*\.*\d+)", graph.text(node, "sigmas") or "")
        return len(listed) - 1 if listed else None
    return graph.whole(node, "steps", "num_steps", "num_inference_steps")


def _chain(graph: Graph, link: Link | None, name: str) -> list[str]:
    """The nodes upstream that each change what the one above gave out under `name`, down to the first maker."""
    chain: list[str] = []
    while link is not None and len(chain) < MAX_DEPTH:
        chain.append(link.node)
        link = graph.link(link.node, name)
    return chain


def _model(graph: Graph, link: Link | None, sampler: str) -> tuple[str | None, tuple[Lora, ...] | None]:
    """The model file and the LoRAs on it, in the order in which they were applied."""
    loras: list[Lora] | None = []
    node: str | None = link.node if link else sampler
    for _ in range(MAX_DEPTH):
        if node is None:
            break
        loras = _with_loras(graph, node, loras)
        above = [name for name in graph.links(node) if re.fullmatch(r"model_?\d*", name)]
        above = [name for name in above if graph.value(node, name) is None]
        if not above:
            name = graph.text(node, *CHECKPOINTS) or MODEL_NODES.get(graph.kind(node))
            return name, None if name is None or loras is None else tuple(reversed(loras))
        if len(above) > 1:
            break  # merged from several
        further = graph.link(node, above[0])
        node = further.node if further else None
    return None, None


def _with_loras(graph: Graph, node: str, loras: list[Lora] | None) -> list[Lora] | None:
    """`loras` and those that the node applies; None if it applies some that have no name in the graph."""
    here = _loras_of(graph, node)
    return None if loras is None or here is None else loras + here


def _loras_of(graph: Graph, node: str) -> list[Lora] | None:
    listed = [value for value in graph.inputs(node).values() if isinstance(value, dict) and "lora" in value]
    if listed:
        return [_listed_lora(value) for value in reversed(listed) if value.get("on", True)]
    name = graph.text(node, "lora_name")
    strength = graph.number(node, "strength_model", "lora_model_strength", "model_strength", "strength")
    clip = graph.number(node, "strength_clip", "lora_clip_strength", "clip_strength")
    if name is not None:
        nothing = name == "None" or (strength == 0 and not clip)
        return [] if nothing else [Lora(name, strength, clip)]
    unnamed = {"lora", "loras", "lora_name", "lora_stack"} & set(graph.inputs(node))
    return None if unnamed and strength != 0 else []


def _listed_lora(value: dict[str, Any]) -> Lora:
    """One row of a node that holds many, as rgthree's Power Lora Loader writes them."""
    strengths = [value.get(name) for name in ("strength", "strengthTwo")]
    model, clip = (float(s) if isinstance(s, (int, float)) else None for s in strengths)
    return Lora(str(value["lora"]), model, model if clip is None else clip)
