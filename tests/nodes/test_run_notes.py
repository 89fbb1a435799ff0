"""What rules did to pictures is told of those pictures alone, whatever else ran on the same ruled model."""

from __future__ import annotations

from typing import Any

from comfy_execution.utils import CurrentNodeContext

from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.nodes.run_notes import of_run
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.test_rules import Order, ruled, run


class Sampler:
    """The executing node of a prompt: `run` makes pictures inside it, `told` is what a node further down finds out."""

    def __init__(self, prompt: str, node: str, call: int = 0) -> None:
        self.prompt, self.node, self.call = prompt, node, call

    def run(self, model: Any, batch: int = 2) -> None:
        with CurrentNodeContext(self.prompt, self.node, self.call):
            run(model, batch=batch)

    def told(self, above: set[str], count: int = 2) -> list[list[str]]:
        with CurrentNodeContext(self.prompt, "capture", self.call):
            return of_run(self.prompt, above, count)


def noted(reward: Reward, node: str = "rule") -> Any:
    model = ruled(tiny_models.sd15(), reward, "stop")
    (rules,) = model.model_options["sampler_post_cfg_function"]
    object.__setattr__(rules.judged[0], "node", node)
    return model


def test_what_rules_did_is_told_of_each_samplers_own_pictures(inference_mode):
    """Two samplers of one prompt on one ruled model: the first one's second picture is stopped, then the second one's
    first. Each recorder sees the sampler above it alone, and one above neither sees nothing."""
    model = noted(Order(1.0, -1.0, *[1.0] * 10, -1.0, *[1.0] * 11))
    for node in ("first", "second"):
        Sampler("two samplers", node).run(model)
    told = [Sampler("two samplers", node).told({"rule", node}) for node in ("first", "second", "third")]
    assert [[len(texts) for texts in one] for one in told] == [[0, 1], [1, 0], [0, 0]]
    assert told[0][1][0].startswith("stopped at ")
    assert Sampler("two samplers", "first").told({"first"}) == [[], []], "the rule is of another branch"


def test_a_node_that_samples_several_times_hands_out_its_pictures_in_that_order(inference_mode):
    """Two runs of two pictures, the third of the four is stopped; the first run is noted though nothing happened."""
    sampler, model = Sampler("several runs", "s"), noted(Order(*[1.0] * 12, -1.0, 1.0))
    sampler.run(model)
    sampler.run(model)
    assert [len(texts) for texts in sampler.told({"rule", "s"}, 4)] == [0, 0, 1, 0]
    assert sampler.told({"rule", "s"}) == [[], []], "two pictures are not what this node made"


def test_each_call_of_a_sampler_over_a_list_is_told_by_itself(inference_mode):
    model = noted(Order(1.0, -1.0, *[1.0] * 10, -1.0, *[1.0] * 11))
    calls = [Sampler("a list", "s", call) for call in (0, 1)]
    for call in calls:
        call.run(model)
    assert [[len(texts) for texts in call.told({"rule", "s"})] for call in calls] == [[0, 1], [1, 0]]
