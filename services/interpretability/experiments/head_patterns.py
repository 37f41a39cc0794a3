"""Head-patterns experiment: heads that look at the previous token, at the same token before, or at its successor.

A random sequence comes twice, so that nothing but its repetition can be used ("A Mathematical Framework for
Transformer Circuits", 2021). Knows tokens; knows no text.
"""

import random

from pydantic import Field

from fovea.errors import InvalidOption
from services.interpretability.attention.head_scores import head_patterns, top_heads
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import Report, Scalar, Table, head_map, head_name
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Paper

PAPER = Paper.on_arxiv(
    "In-context Learning and Induction Heads", 2022, "2209.11895", venue="Transformer Circuits Thread"
)

_CAPTIONS = {
    "previous": "Mean attention to the token before.",
    "duplicate": "Mean attention, in the second half, to the same token in the first.",
    "induction": "Mean attention, in the second half, to the token that followed the same one in the first.",
    "first": "Mean attention to the first token.",
    "entropy": "Mean entropy of a row, in nats: 0 looks at one token, more is spread wider.",
}


class HeadPatternsSpec(Spec):
    """The sequence that is repeated."""

    half: int = Field(32, ge=2, le=2048, description="Tokens of the random sequence, drawn by the seed.")
    text: str | None = Field(None, max_length=20_000, description="Repeated instead of a random sequence.")


class HeadPatterns(Experiment[HeadPatternsSpec]):
    """Finds previous-token, duplicate-token and induction heads, first-token mass and entropy, from one forward."""

    In = HeadPatternsSpec
    mode = "sync"
    route = "heads/patterns"
    card = probe_card(
        "head-patterns",
        "Finds previous-token, duplicate-token and induction heads on a sequence that comes twice.",
        PAPER,
        "Random tokens are no language: a head may behave otherwise on text.",
        half=24,
    )

    def cost(self, spec: HeadPatternsSpec, subject: StudiedModel) -> Cost:
        return Cost(1, 2 * len(_make_half(spec, subject)))

    def run(self, spec: HeadPatternsSpec, subject: StudiedModel, progress: Progress) -> Report:
        half = _make_half(spec, subject)
        scores = head_patterns(subject.model, half)
        text = subject.tokenizer.decode(half * 2) if spec.text else None
        strongest = [
            [kind, head_name(head), float(scores[kind][head])]
            for kind in ("previous", "duplicate", "induction", "first")
            for head in top_heads(scores[kind], 1.0)[:5]
        ]
        return Report(
            title="Head patterns",
            scalars={"tokens": Scalar(value=2 * len(half))},
            grids=[
                head_map(name, grid, _CAPTIONS[name], text=text, unit="nats" if name == "entropy" else "mean attention")
                for name, grid in scores.items()
            ],
            tables=[Table.of("strongest", "kind, head, score", strongest, "The heads that do each most.")],
        )


def draw_half(subject: StudiedModel, tokens: int, seed: int) -> list[int]:
    """Draw the random tokens that come twice."""
    rng = random.Random(f"patterns/{seed}")
    return [rng.randrange(subject.model.config.vocab) for _ in range(tokens)]


def _make_half(spec: HeadPatternsSpec, subject: StudiedModel) -> list[int]:
    is_text = spec.text is not None
    half = subject.encode(spec.text or "", special=False) if is_text else draw_half(subject, spec.half, spec.seed)
    subject.check_window(2 * len(half), "text" if is_text else "half")
    if len(half) < 2:
        detail = "text has one token; two are needed to tell the token before from the same one."
        raise InvalidOption(detail, field="text")
    return half
