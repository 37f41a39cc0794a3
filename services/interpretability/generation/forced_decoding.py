"""How a model answers a prompt whose answer is known: forced along it, or generating; and what its heads looked at.

Knows prompts, caches and pattern rows; knows no experiment and no report.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.interpretability.attention.pattern_capture import RowCapturingAttention
from services.interpretability.attention.retrieval_score import top_positions
from services.interpretability.causal.losses import mask_heads, position_losses
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.generation.prefix_reader import PrefixReader
from shared.lm.cache import KVCache
from shared.lm.niah_prompts import Prompt
from shared.lm.taps import Edit, trace

__all__ = ["AnswerScore", "Phase", "TracedAnswer", "generate_answer", "score_known_answer", "trace_known_answer"]

Head = tuple[int, int]


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """How likely the known answer was: mean loss in nats per token, and share of tokens that were the likeliest."""

    nll: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class TracedAnswer:
    """An answer, and where each head looked at every step of it.

    Attributes:
        looked: Positions [steps, L, H, top], largest first.
        tokens: The token of each step: known where it was forced, else generated.
        forced: How likely the known answer was, where it was forced.
    """

    looked: np.ndarray = field(repr=False)
    tokens: list[int]
    forced: AnswerScore | None = None


Phase = str
"""`all`, or `decode`: masking begins with the token that predicts the answer's first."""


def trace_known_answer(reader: PrefixReader, prompt: Prompt, *, top: int = 1) -> TracedAnswer:
    """Read the prompt with its known answer, and see the rows that predict the answer."""
    ids, answer, subject = prompt.ids, prompt.answer_ids, reader.subject
    subject.check_window(len(ids) + len(answer), "length")
    looked = _TopPositions(subject, len(answer), len(ids) - 1, top)
    logits = reader.read([*ids, *answer[:-1]], len(answer), looked)
    return TracedAnswer(looked.found, list(answer), _score_answer(logits, subject.tensor([answer])))


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
    """Decode greedily as the paper does, up to a line break or the model's end token, and see every step's rows.

    With `masked`, those heads' attention is uniform and rows are not seen.
    """
    subject.check_window(len(prompt.ids) + steps, "length")
    hidden = mask_heads(masked)
    cache = subject.model.new_cache(room=len(prompt.ids) + steps)
    trace(subject.model, subject.tensor([prompt.ids[:-1]]), cache=cache, keep=1, edits=hidden if phase == "all" else [])
    token, said, looked = prompt.ids[-1], [], []
    for _ in range(steps):
        token, seen = _decode_step(subject, cache, token, top, hidden)
        if token in subject.tokenizer.eos or b"\n" in subject.tokenizer.token_bytes(token):
            break
        said.append(token)
        looked.append(seen)
    empty = np.zeros((0, subject.layers, subject.heads, top), int)
    return TracedAnswer(np.concatenate(looked) if looked else empty, said)


def _decode_step(
    subject: StudiedModel, cache: KVCache, token: int, top: int, hidden: list[Edit]
) -> tuple[int, np.ndarray]:
    looked = _TopPositions(subject, 1, cache.length, top)
    ids = subject.tensor([[token]])
    if hidden:
        logits = trace(subject.model, ids, cache=cache, edits=hidden).logits
    else:
        watching = RowCapturingAttention(looked, cache=cache, windows=subject.model.config.windows)
        logits = subject.model(ids, cache=cache, attend=watching)
    return int(logits[0, -1].argmax()), looked.found


@torch.no_grad()
def score_known_answer(
    subject: StudiedModel, prompt: Prompt, masked: Iterable[Head] = (), phase: Phase = "all"
) -> AnswerScore:
    """How likely the known answer is with some heads' attention made uniform."""
    ids, answer = prompt.ids, prompt.answer_ids
    whole = [*ids, *answer[:-1]]
    subject.check_window(len(whole), "length")
    positions = None if phase == "all" else range(len(ids) - 1, len(whole))
    found = trace(subject.model, subject.tensor([whole]), edits=mask_heads(masked, positions), keep=len(answer))
    return _score_answer(found.logits, subject.tensor([answer]))


def _score_answer(logits: Tensor, answer: Tensor) -> AnswerScore:
    """Of logits [1,n,V] that predict answer [1,n]."""
    padded = torch.cat((answer[:, :1], answer), 1)
    losses = position_losses(torch.cat((logits, logits[:, -1:]), 1), padded)
    return AnswerScore(float(losses.double().mean()), float((logits.argmax(-1) == answer).double().mean()))


class _TopPositions:
    """Notes where rows look most: found [steps, L, H, top]."""

    def __init__(self, subject: StudiedModel, steps: int, first: int, top: int) -> None:
        self.found = np.zeros((steps, subject.layers, subject.heads, top), int)
        self._first, self._top = first, top

    def __call__(self, layer: int, start: int, rows: Tensor) -> None:
        seen = top_positions(rows[0].float().cpu().numpy(), self._top)  # [H, t, top]
        place = start - self._first
        self.found[place : place + seen.shape[1], layer] = seen.transpose(1, 0, 2)
