"""Forced and free decoding of a prompt whose answer is known, with the positions that heads look at most.

Knows prompts, caches and pattern rows; knows no experiment and no report.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.interpretability.attention.pattern_capture import AttentionRowCallback, RowCapturingAttention
from services.interpretability.attention.retrieval_score import Head, top_positions
from services.interpretability.core.losses import mask_heads
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.generation.prefix_reader import PrefixReader
from shared.lm.cache import KVCache
from shared.lm.niah_prompts import Prompt
from shared.lm.taps import Edit, trace

Phase = Literal["all", "decode"]
"""When heads are masked: always, or from the token on that predicts the answer's first."""


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Likelihood of the known answer.

    Attributes:
        nll: Mean loss in nats per token.
        accuracy: Share of tokens that were the likeliest.
    """

    nll: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class TracedAnswer:
    """An answer with the positions that each head looked at most while it was produced.

    Attributes:
        top_positions: Positions [steps, L, H, top], largest attention first.
        tokens: The token of each step: the known one where it was forced, else the generated one.
        score: Likelihood of the known answer, where it was forced.
    """

    top_positions: np.ndarray = field(repr=False)
    tokens: list[int]
    score: AnswerScore | None = None


def trace_known_answer(reader: PrefixReader, prompt: Prompt, *, top: int = 1) -> TracedAnswer:
    """Read the prompt with its known answer, and record the rows that predict the answer."""
    ids, answer, subject = prompt.ids, prompt.answer_ids, reader.subject
    subject.check_window(len(ids) + len(answer), "length")
    positions, visit = _record_positions(subject, len(answer), len(ids) - 1, top)
    logits = reader.read([*ids, *answer[:-1]], len(answer), visit)
    return TracedAnswer(positions, list(answer), _score_answer(logits, subject.tensor([answer])))


@torch.no_grad()
def generate_answer(
    subject: StudiedModel,
    prompt: Prompt,
    *,
    steps: int = 50,
    top: int = 1,
    masked: Iterable[Head] = (),
    phase: Phase = "all",
) -> TracedAnswer:
    """Decode greedily as the paper does, up to a line break or the model's end token, and record every step's rows.

    With `masked`, the attention of those heads is uniform, and no rows are recorded.
    """
    subject.check_window(len(prompt.ids) + steps, "length")
    edits = mask_heads(masked)
    cache = subject.model.new_cache(room=len(prompt.ids) + steps)
    trace(subject.model, subject.tensor([prompt.ids[:-1]]), cache=cache, keep=1, edits=edits if phase == "all" else [])
    token, tokens, positions = prompt.ids[-1], [], []
    for _ in range(steps):
        token, looked_at = _decode_step(subject, cache, token, top, edits)
        if token in subject.tokenizer.eos or b"\n" in subject.tokenizer.token_bytes(token):
            break
        tokens.append(token)
        positions.append(looked_at)
    empty = np.zeros((0, subject.layers, subject.heads, top), int)
    return TracedAnswer(np.concatenate(positions) if positions else empty, tokens)


def _decode_step(
    subject: StudiedModel, cache: KVCache, token: int, top: int, edits: list[Edit]
) -> tuple[int, np.ndarray]:
    positions, visit = _record_positions(subject, 1, cache.length, top)
    ids = subject.tensor([[token]])
    if edits:
        logits = trace(subject.model, ids, cache=cache, edits=edits).logits
    else:
        attend = RowCapturingAttention(visit, cache=cache, windows=subject.model.config.windows)
        logits = subject.model(ids, cache=cache, attend=attend)
    return int(logits[0, -1].argmax()), positions


@torch.no_grad()
def score_known_answer(
    subject: StudiedModel, prompt: Prompt, masked: Iterable[Head] = (), phase: Phase = "all"
) -> AnswerScore:
    """Return the likelihood of the known answer with the attention of some heads made uniform."""
    ids, answer = prompt.ids, prompt.answer_ids
    text = [*ids, *answer[:-1]]
    subject.check_window(len(text), "length")
    positions = None if phase == "all" else range(len(ids) - 1, len(text))
    traced = trace(subject.model, subject.tensor([text]), edits=mask_heads(masked, positions), keep=len(answer))
    return _score_answer(traced.logits, subject.tensor([answer]))


def _score_answer(logits: Tensor, answer: Tensor) -> AnswerScore:
    """Score of logits [1,n,V] that predict answer [1,n]."""
    losses = functional.cross_entropy(logits[0].float(), answer[0], reduction="none")
    return AnswerScore(float(losses.double().mean()), float((logits.argmax(-1) == answer).double().mean()))


def _record_positions(
    subject: StudiedModel, steps: int, first: int, top: int
) -> tuple[np.ndarray, AttentionRowCallback]:
    """Where rows look most, positions [steps, L, H, top], and the visitor that fills them."""
    positions = np.zeros((steps, subject.layers, subject.heads, top), int)

    def visit(layer: int, start: int, rows: Tensor) -> None:
        largest = top_positions(rows[0].float().cpu().numpy(), top)  # [H, t, top]
        step = start - first
        positions[step : step + largest.shape[1], layer] = largest.transpose(1, 0, 2)

    return positions, visit
