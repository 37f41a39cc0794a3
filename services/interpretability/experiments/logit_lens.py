"""Logit-lens experiment: the next-token distribution of every layer's residual stream.

The final norm and the output matrix are applied to the stream after every block. Knows one text.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from fovea.errors import InvalidOption, TooLarge
from services.interpretability.causal.activation_cache import run_with_cache
from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import Axis, HeatMap, Report, Scalar, Table, to_matrix
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Card, Paper

MAX_TOKENS = 512
"""Tokens of a text whose every layer is read out: the vocabulary is applied L times per position."""


class LogitLensSpec(Spec):
    """Text, position and number of candidates."""

    text: str = Field(min_length=1, max_length=20_000, description="The text.")
    position: int = Field(-1, description="Position whose candidates are listed; negative counts from the end.")
    top: int = Field(5, ge=1, le=50, description="Candidates per layer.")


class LogitLens(Experiment[LogitLensSpec]):
    """Lists the top tokens per layer, and how early each next token is predicted."""

    In = LogitLensSpec
    mode = "sync"
    route: ClassVar[str] = "logit-lens"
    card: ClassVar[Card] = Card(
        name="logit-lens",
        task="probe",
        licence="Apache-2.0",
        summary="Shows what each layer would predict next, and which layer finds the text's next token.",
        paper=Paper(title="interpreting GPT: the logit lens", venue="LessWrong", year=2020),
        notes=("Early layers speak another basis: their words are hints, not thoughts.", NO_GRAPH),
        example={"lm": EXAMPLE_LM, "seed": 0, "text": "kqzwxm kqzwxm kqzwx"},
    )

    def cost(self, spec: LogitLensSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(_encode_text(spec, subject)))

    def run(self, spec: LogitLensSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = _encode_text(spec, subject)
        position = spec.position % len(ids)
        run = run_with_cache(subject.model, subject.tensor([ids]))
        rows, right = [], []
        with torch.no_grad():
            for layer, x in enumerate([*run.pre[1:], run.final]):
                log_probs = run.to_logits(x[0]).float().log_softmax(-1)
                best = log_probs[position].topk(spec.top)
                candidates = [
                    f"{subject.tokenizer.token_text(int(i))} {float(p.exp()):.2f}"
                    for p, i in zip(best.values, best.indices, strict=True)
                ]
                rows.append([layer, *candidates])
                right.append([float(log_probs[t, ids[t + 1]].exp()) for t in range(len(ids) - 1)])
        texts = [token.text for token in subject.token_spans(ids)]
        return Report(
            title="Logit lens",
            scalars={"tokens": Scalar(value=len(ids)), "position": Scalar(value=position, note=texts[position])},
            tables=[
                Table(
                    name="candidates",
                    columns=["layer", *(str(i + 1) for i in range(spec.top))],
                    rows=rows,
                    caption=f"Likeliest tokens after position {position}, with their probability, after each layer.",
                )
            ],
            grids=[
                HeatMap(
                    name="next_token",
                    values=to_matrix(right),
                    unit="probability",
                    rows=Axis(label="after layer", ticks=[str(l) for l in range(len(right))]),
                    columns=Axis(label="next token", ticks=texts[1:]),
                    caption="Probability of the text's own next token after each layer: empty columns are known late.",
                )
            ]
            if len(ids) > 1
            else [],
        )


def _encode_text(spec: LogitLensSpec, subject: StudiedModel) -> list[int]:
    ids = subject.encode(spec.text)
    if len(ids) > MAX_TOKENS:
        detail = f"text has {len(ids)} tokens; the lens takes at most {MAX_TOKENS}."
        raise TooLarge(detail, hint="Send the passage that matters.", field="text")
    if not -len(ids) <= spec.position < len(ids):
        detail = f"There is no position {spec.position}; the text has positions 0…{len(ids) - 1}."
        raise InvalidOption(detail, field="position")
    return ids
