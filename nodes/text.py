"""FeedbackTextConditioning: what somebody wrote about the last pictures steers the next ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..feedback.conditioning import prompt_of
from ..feedback.graph import Graph
from ..feedback.wishes import latest_comments
from ..guidance.text import Said, appended, during, listed, moved, rounds, shifted, told
from .compat import io, store
from .denoiser import WrongConnectionError
from .guidance import check_interval
from .inputs import share_input

EVERYWHERE, INSIDE, APPEND = "everywhere", "in the prompt", "append"
EVERYWHERE_AT_1 = 0.6
"""Of the whole direction, at strength 1: measured on the demo model, see bench/refine.py."""
BEYOND = 2.0
"""So many times as far as a negative prompt that names it goes the negative one, where the prompt is moved away too.

Measured on the demo model: at once (1) half of the marks of "no watermark" stay, at 3 other things begin to change.
"""
NEGATIVE, AWAY, BOTH = "negative prompt", "away", "both"
MAX_EARLIER = 20

Encode = Callable[[str], Any]


def encoder_of(clip: Any) -> Encode:
    """Text -> CONDITIONING, each text once. Raises WrongConnectionError for a checkpoint's missing CLIP."""
    if clip is None:
        raise WrongConnectionError(
            "There is no text encoder in what is connected as `clip`. Connect one from Load CLIP, or a checkpoint that "
            "holds one."
        )
    known: dict[str, Any] = {}

    def encode(text: str) -> Any:
        if text not in known:
            known[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return known[text]

    return encode


def with_phrase(encode: Encode, base: Any, prompt: str, phrase: str, strength: float, mode: str) -> Any:
    """base with one phrase more, or less of it where strength is negative."""
    if mode == APPEND and strength > 0:
        return appended(base, encode(phrase), strength)
    if mode == INSIDE:
        return moved(base, encode(told(prompt, phrase)), encode(prompt), strength)
    return shifted(base, encode(phrase), encode(""), EVERYWHERE_AT_1 * strength)


def steered(encode: Encode, base: Any, prompt: str, said: Sequence[Said], strength: float, mode: str) -> Any:
    """base with each round's wanted things, the oldest first."""
    for one in said:
        if phrase := one.phrase(wanted=True):
            base = with_phrase(encode, base, prompt, phrase, strength * one.weight, mode)
    return base


def turned_away(encode: Encode, base: Any, prompt: str, said: Sequence[Said], strength: float, mode: str) -> Any:
    """base with each round's unwanted things taken off; a prompt without known words ('') is moved everywhere."""
    mode = INSIDE if prompt else EVERYWHERE
    for one in said:
        if phrase := one.phrase(wanted=False):
            base = with_phrase(encode, base, prompt, phrase, -strength * one.weight, mode)
    return base


def refused(encode: Encode, base: Any, prompt: str, said: Sequence[Said], strength: float, mode: str) -> Any:
    """The negative conditioning with each round's unwanted things: at strength 1 as if they had been written there."""
    for one in said:
        if phrase := one.phrase(wanted=False):
            how = APPEND if mode == APPEND else INSIDE
            base = with_phrase(encode, base, prompt, phrase, strength * one.weight, how)
    return base


def rid(
    encode: Encode, both: tuple[Any, Any], texts: tuple[str, str], said: Sequence[Said], strength: float, mode: str
) -> tuple[Any, Any]:
    """(positive, negative) with the unwanted things taken off the first and, further than written, in the second.

    texts: the words of either, '' where they are not known.
    """
    positive = turned_away(encode, both[0], texts[0], said, strength, mode)
    beyond = 1.0 if mode == APPEND else BEYOND
    return positive, refused(encode, both[1], texts[1], said, beyond * strength, mode)


def words_behind(hidden: Any, name: str) -> str | None:
    """The text that the conditioning on this input was encoded from, as far as the graph tells."""
    graph = Graph(getattr(hidden, "prompt", None) or {})
    link = graph.link(str(getattr(hidden, "unique_id", "")), name)
    return None if link is None else prompt_of(graph, link)


def words_of_both(written: str, hidden: Any) -> tuple[str, str]:
    """The words of the positive (written ones, else as the graph tells) and of the negative; '' where not known."""
    return written.strip() or words_behind(hidden, "positive") or "", words_behind(hidden, "negative") or ""


def known_prompt(written: str, hidden: Any) -> str:
    """The prompt that was written, or the one in the graph. Raises WrongConnectionError where neither is."""
    if written.strip():
        return written.strip()
    if (found := words_behind(hidden, "positive")) is None:
        raise WrongConnectionError(
            "The words of the conditioning were not found in the graph, and the direction of a wish depends on them. "
            "Write them into prompt, or set mode to everywhere or append."
        )
    return found


def with_stored(earlier: str, collection: str) -> str:
    """The list of earlier comments, after those that lie in the store."""
    if not collection.strip():
        return earlier
    comments = store().ask(lambda c: latest_comments(c, collection.strip(), MAX_EARLIER))
    return "\n".join([*(one.replace("\n", ", ") for one in comments), earlier])


def summary(said: Sequence[Said]) -> str:
    """What the node shows: each round with its weight and what was understood."""
    lines = []
    for one in reversed(said):
        parts = [
            f"{sign} {text}" for sign, wanted in (("more:", True), ("less:", False)) if (text := one.phrase(wanted))
        ]
        lines.append(f"{one.weight:.2f}  {one.text}\n      {'; '.join(parts) or 'nothing understood'}")
    return "\n".join(lines) or "Nothing was said yet."


class FeedbackTextConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackTextConditioning",
            display_name="Say what to change",
            category="feedback/guidance",
            description=(
                "Write what you would change about the last pictures, such as: brighter background, less clutter, no "
                "text. The next ones follow, and what you said in earlier rounds still counts, less and less."
            ),
            search_aliases=["comment", "text feedback", "instruction", "edit by words", "wish", "prompt direction"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt as it was encoded. The wish is added to it."),
                io.Clip.Input("clip", tooltip="The text encoder that the prompt was encoded with."),
                io.String.Input(
                    "comment",
                    multiline=True,
                    default="",
                    tooltip="What should change, in English: make the background brighter, less clutter, no text. "
                    "Several wishes are parted by commas. Empty: only earlier comments act.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How far the conditioning moves: 1 is what we measured to work best, above 2 other things "
                    "begin to change, 0 is off and gives exactly what came in.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[EVERYWHERE, INSIDE, APPEND],
                    tooltip="everywhere: the wish's direction is added to every token of the prompt. in the prompt: as "
                    "if the wish stood at its end, or more. append: the wish is a second prompt beside the first, and "
                    "the model averages both.",
                ),
                io.String.Input(
                    "earlier",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What was said in earlier rounds, one comment a line, the latest last. Edit it freely. A "
                    "line may begin with a weight of its own, as in 0.3: less clutter.",
                ),
                *_later_inputs(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the wishes."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt with what you want less of."
                ),
                io.String.Output(display_name="said", tooltip="All comments, one a line: the next round's `earlier`."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, collection: str = "", **inputs: object) -> int:
        return store().feedback().revision if collection.strip() else 0

    @classmethod
    def execute(
        cls,
        positive: Any,
        clip: Any,
        comment: str,
        strength: float,
        mode: str,
        earlier: str = "",
        decay: float = 0.5,
        unwanted: str = BOTH,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        prompt: str = "",
        negative: Any = None,
        collection: str = "",
    ) -> io.NodeOutput:
        check_interval(start_percent, end_percent)
        encode = encoder_of(clip)
        said = rounds(comment, with_stored(earlier, collection), decay)
        text = known_prompt(prompt, cls.hidden) if mode == INSIDE and said and strength > 0 else ""
        plain = [positive, negative or encode("")]
        changed, against = plain
        texts = words_of_both(prompt, cls.hidden)
        if unwanted == BOTH:
            changed, against = rid(encode, (changed, against), texts, said, strength, mode)
        elif unwanted == AWAY:
            changed = turned_away(encode, changed, texts[0], said, strength, mode)
        else:
            against = refused(encode, against, texts[1], said, strength, mode)
        changed = steered(encode, changed, text, said, strength, mode)  # last, as a wish set beside it stays as it is
        both = [during(old, new, start_percent, end_percent) if new is not old else old
                for old, new in zip(plain, (changed, against), strict=True)]  # fmt: skip
        return io.NodeOutput(*both, listed(said), ui={"text": (summary(said),)})


def _later_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "decay",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How much a comment still counts one round later: 0.5 is half, two rounds later a quarter. 0 "
            "forgets at once.",
        ),
        io.Combo.Input(
            "unwanted",
            options=[BOTH, NEGATIVE, AWAY],
            optional=True,
            advanced=True,
            tooltip="What becomes of 'no', 'less' and 'remove'. both: the prompt is moved away from it, and the "
            "negative prompt far towards it. negative prompt: it is added there as if written, which needs a CFG above "
            "1. away: the prompt alone is moved.",
        ),
        share_input(
            "start_percent",
            0.0,
            "When the wishes begin to count, as a share of the run. Later keeps the layout.",
            optional=True,
            advanced=True,
        ),
        share_input("end_percent", 1.0, "When the wishes end, as a share of the run.", optional=True, advanced=True),
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip="The words that `positive` was encoded from. Empty finds them in the graph.",
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="The negative prompt. Without one, an empty one is taken."
        ),
        io.String.Input(
            "collection",
            default="",
            optional=True,
            advanced=True,
            tooltip="Comments that were written on pictures of this collection count as earlier ones too. Empty takes "
            "none.",
        ),
    ]


NODES: list[type[io.ComfyNode]] = [FeedbackTextConditioning]
