"""Logit-lens experiment: the next-token distribution of every layer's residual stream.

The final norm and the output matrix are applied to the stream after every block. Knows one text.
"""

import torch
from pydantic import Field

from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import Report, Scalar, Table, heat_map
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.attention import resolve_indices
from shared.lm.taps import trace
from shared.registry import Paper

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
    route = "logit-lens"
    card = probe_card(
        "logit-lens",
        "Shows what each layer would predict next, and which layer finds the text's next token.",
        Paper(title="interpreting GPT: the logit lens", venue="LessWrong", year=2020),
        "Early layers speak another basis: their words are hints, not thoughts.",
        text="kqzwxm kqzwxm kqzwx",
    )

    def cost(self, spec: LogitLensSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(_encode_text(spec, subject)))

    def run(self, spec: LogitLensSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = _encode_text(spec, subject)
        position = spec.position % len(ids)
        names = [f"resid_post.{l}" for l in range(subject.layers)]
        run = trace(subject.model, subject.tensor([ids]), capture=names, keep=1)
        rows, right = [], []
        with torch.no_grad():
            for layer, name in enumerate(names):
                log_probs = subject.model.read_logits(run[name][0]).float().log_softmax(-1)
                ranked = zip(*log_probs[position].topk(spec.top), strict=True)
                texts = [f"{subject.tokenizer.token_text(int(i))} {float(p.exp()):.2f}" for p, i in ranked]
                rows.append([layer, *texts])
                right.append([float(log_probs[t, ids[t + 1]].exp()) for t in range(len(ids) - 1)])
        texts = [token.text for token in subject.token_spans(ids)]
        axes = ("after layer", range(len(right))), ("next token", texts[1:])
        columns = ", ".join(["layer", *(str(i + 1) for i in range(spec.top))])
        likeliest = f"Likeliest tokens after position {position}, with their probability, after each layer."
        known = "Probability of the text's own next token after each layer: empty columns are known late."
        return Report(
            title="Logit lens",
            scalars={"tokens": Scalar(value=len(ids)), "position": Scalar(value=position, note=texts[position])},
            tables=[Table.of("candidates", columns, rows, likeliest)],
            grids=[heat_map("next_token", right, *axes, known, unit="probability")] if len(ids) > 1 else [],
        )


def _encode_text(spec: LogitLensSpec, subject: StudiedModel) -> list[int]:
    ids = subject.encode(spec.text, most=MAX_TOKENS)
    resolve_indices([spec.position], len(ids), "position")
    return ids
