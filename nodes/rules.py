"""FeedbackRule: a condition on a reward while the pictures are made, and what happens to those that meet it."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher

from ..feedback.rewards.base import Reward
from ..guidance.rules import ACTIONS, COMPARE, Rule
from .compat import REWARD, io
from .decoder import check_decoder, decoder_of
from .denoiser import WrongConnectionError, process_of
from .guidance import check_interval, check_judge
from .inputs import decoder_input, share_input
from .ruled import Judged, add_rule


def check_rule(rule: Rule, conditioning: Any) -> None:
    """Raises WrongConnectionError for a rule that could do nothing."""
    if rule.action == "switch conditioning" and conditioning is None:
        raise WrongConnectionError(
            "This rule switches to another conditioning, but none is connected. Connect a CLIP Text Encode to "
            "`conditioning`, or choose another action."
        )
    check_interval(rule.start, rule.end)


class FeedbackRule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackRule",
            display_name="Rule while sampling",
            category="feedback/guidance",
            description=(
                "Watches a reward while the pictures are made. Where it falls below a threshold, or rises above it, "
                "guidance is boosted, the picture goes some steps back, its prompt is switched, or it stops there. "
                "Chain several for several rules."
            ),
            search_aliases=["condition", "if", "early stop", "restart", "switch prompt", "callback", "rule"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose runs obey the rule. The original stays as it is."),
                REWARD.Input("reward", tooltip="What is watched. It needs no gradient."),
                io.Vae.Input("vae", tooltip="The model's VAE. Rewards judge pictures, so every estimate is decoded."),
                io.Combo.Input("compare", options=list(COMPARE), tooltip="On which side of the threshold it fires."),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="A value of the reward. Score pictures shows what values your pictures have.",
                ),
                io.Combo.Input(
                    "action",
                    options=list(ACTIONS),
                    tooltip="boost guidance: multiplies Reward guidance on this model from then on, by 10 at most and "
                    "as far as its steps are safe. step back: noises the estimate anew, some steps earlier, and goes "
                    "on from there. switch conditioning: uses the other prompt from then on. stop: the picture stays "
                    "as it is expected at that step.",
                ),
                io.Float.Input(
                    "amount",
                    default=2.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="boost guidance: by what it is multiplied. step back: how many steps.",
                ),
                share_input(
                    "start_percent", 0.3, "From which share of the run on the rule looks. Early estimates are blurred."
                ),
                share_input("end_percent", 0.9, "Up to which share of the run the rule looks."),
                io.Int.Input(
                    "times",
                    default=1,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="How often the rule may fire for one picture.",
                ),
                io.Conditioning.Input(
                    "conditioning", optional=True, tooltip="The prompt that switch conditioning goes over to."
                ),
                decoder_input(optional=True),
            ],
            outputs=[io.Model.Output(tooltip="The model that obeys the rule, for any sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        reward: Reward,
        vae: Any,
        compare: Any,
        threshold: float,
        action: Any,
        amount: float = 2.0,
        start_percent: float = 0.3,
        end_percent: float = 0.9,
        times: int = 1,
        conditioning: Any = None,
        decoder: str = "auto",
    ) -> io.NodeOutput:
        process_of(model)
        name = check_judge(reward, "reward").name
        rule = Rule(compare, threshold, action, amount, start_percent, end_percent, times, name)
        check_rule(rule, conditioning)
        check_decoder(decoder, reward)
        node = str(cls.hidden.unique_id or "") if cls.hidden else ""
        judged = Judged(rule, reward, decoder_of(vae, model, decoder), conditioning, node)
        return io.NodeOutput(add_rule(model, judged))


NODES: list[type[io.ComfyNode]] = [FeedbackRule]
