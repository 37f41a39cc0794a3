"""Logit-attribution experiment: the answer's logit difference as a sum over heads, MLPs, embedding and biases.

Exact with the final norm frozen ("Interpretability in the Wild", 2022, appendix). Knows one prompt; tasks of many are
studied by circuits.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from fovea.errors import InvalidOption
from services.interpretability.attention.head_scores import top_heads
from services.interpretability.causal.activation_cache import run_with_cache
from services.interpretability.causal.patching import attribute_logits
from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import (
    Bar,
    Bars,
    HeatMap,
    Report,
    Scalar,
    Table,
    head_axes,
    head_name,
    to_matrix,
)
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Card, Paper


class AttributionSpec(Spec):
    """Prompt and two continuations."""

    text: str = Field(min_length=1, max_length=100_000, description="The prompt.")
    correct: str = Field(min_length=1, max_length=200, description="One continuation; its first token counts.")
    wrong: str = Field(min_length=1, max_length=200, description="The other one.")


class LogitAttribution(Experiment[AttributionSpec]):
    """Splits the logit difference of two answers into what each component writes."""

    In = AttributionSpec
    mode = "sync"
    route: ClassVar[str] = "attribution"
    card: ClassVar[Card] = Card(
        name="logit-attribution",
        task="probe",
        licence="Apache-2.0",
        summary="Splits the difference between two answers into what each head and MLP writes towards it.",
        paper=Paper(
            title="Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small",
            venue="ICLR",
            year=2023,
            url="https://arxiv.org/abs/2211.00593",
        ),
        notes=("Direct effects only: what a head does through other heads is found by patching.", NO_GRAPH),
        example={"lm": EXAMPLE_LM, "seed": 0, "text": "kqzwxm kqzwx", "correct": "m", "wrong": "d"},
    )

    def cost(self, spec: AttributionSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(subject.encode(spec.text)))

    def run(self, spec: AttributionSpec, subject: StudiedModel, progress: Progress) -> Report:
        answers = [_first_token(subject, spec.correct, "correct"), _first_token(subject, spec.wrong, "wrong")]
        parts = attribute_logits(
            run_with_cache(subject.model, subject.tensor([subject.encode(spec.text)])), subject.tensor([answers])
        )
        axes: Any = head_axes(subject.layers, subject.heads)
        return Report(
            title="Logit attribution",
            scalars={
                "logit_diff": Scalar(value=parts.actual, unit="logits", note="Correct minus wrong."),
                "total": Scalar(value=parts.total, unit="logits", note="Sum of all parts."),
                "residual": Scalar(value=parts.actual - parts.total, unit="logits", note="Rounding; near zero."),
                "heads": Scalar(value=float(parts.heads.sum()), unit="logits"),
                "mlps": Scalar(value=float(parts.mlps.sum()), unit="logits"),
                "embedding": Scalar(value=parts.embedding, unit="logits"),
                "biases": Scalar(value=parts.biases, unit="logits"),
            },
            tables=[
                Table(
                    name="heads",
                    columns=["head", "logits"],
                    rows=[[head_name(h), float(parts.heads[h])] for h in top_heads(parts.heads, 1.0)[:20]],
                    caption="Heads that write most, either way.",
                )
            ],
            grids=[
                HeatMap(
                    name="attribution",
                    values=to_matrix(parts.heads),
                    **axes,
                    scale="diverging",
                    unit="logits",
                    text=spec.text,
                    caption="Direct contribution of each head to the first answer (above 0) or the second (below).",
                )
            ],
            bars=[
                Bars(
                    name="mlps",
                    unit="logits",
                    bars=[Bar(label=str(l), value=float(v)) for l, v in enumerate(parts.mlps)],
                    caption="Direct contribution of each layer's MLP to the first answer.",
                )
            ],
        )


def _first_token(subject: StudiedModel, text: str, field: str) -> int:
    ids = subject.tokenizer.encode(text, special=False)
    if not ids:
        detail = f"{field} holds no token."
        raise InvalidOption(detail, field=field)
    return ids[0]
