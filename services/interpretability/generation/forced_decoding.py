"""How a model answers a prompt whose answer is known: forced along it, or generating; and what its heads looked at.

Knows prompts, caches and pattern rows; knows no experiment and no report.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.interpretability.attention.pattern_capture import Watching
from services.interpretability.attention.retrieval_score import winners
from services.interpretability.causal.losses import hide, position_losses
from services.interpretability.core.studied_model import Subject
from services.interpretability.generation.prefix_reader import Reader
from shared.lm.cache import KVCache
from shared.lm.niah_prompts import Prompt
from shared.lm.taps import Edit, trace

__all__ = ["Answered", "Forced", "Phase", "force", "forced", "generated"]

Head = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Forced:
    """How likely the known answer was: mean loss in nats per token, and share of tokens that were the likeliest."""

    nll: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and where each head looked at every step of it.

    Attributes:
        looked: Positions [steps, L, H, top], largest first.
        tokens: The token of each step: known where it was forced, else generated.
        forced: How likely the known answer was, where it was forced.
    """

    looked: np.ndarray = field(repr=False)
    tokens: list[int]
    forced: Forced | None = None


Phase = str
"""`all`, or `decode`: masking begins with the token that predicts the answer's first."""


def force(reader: Reader, prompt: Prompt, *, top: int = 1) -> Answered:
    """Read the prompt with its known answer, and see the rows that predict the answer."""
    ids, answer, subject = prompt.ids, prompt.answer_ids, reader.subject
    subject.refuse_above_window(len(ids) + len(answer), "length")
    looked = _Looked(subject, len(answer), len(ids) - 1, top)
    logits = reader.read([*ids, *answer[:-1]], len(answer), looked)
    return Answered(looked.found, list(answer), _forced(logits, subject.tensor([answer])))


@torch.no_grad()
def generated(
    subject: Subject,
    prompt: Prompt,
    *,
    steps: int = 50,
    top: int = 1,
    masked: Iterable[Head] = (),
    phase: Phase = "all",
) -> Answered:
    """Decode greedily as the paper does, up to a line break or the model's end token, and see every step's rows.

    With `masked`, those heads' attention is uniform and rows are not seen.
    """
    subject.refuse_above_window(len(prompt.ids) + steps, "length")
    hidden = hide(masked)
    cache = subject.model.new_cache(room=len(prompt.ids) + steps)
    trace(subject.model, subject.tensor([prompt.ids[:-1]]), cache=cache, keep=1, edits=hidden if phase == "all" else [])
    token, said, looked = prompt.ids[-1], [], []
    for _ in range(steps):
        token, seen = _step(subject, cache, token, top, hidden)
        if token in subject.tokenizer.eos or b"\n" in subject.tokenizer.token_bytes(token):
            break
        said.append(token)
        looked.append(seen)
    empty = np.zeros((0, subject.layers, subject.heads, top), int)
    return Answered(np.concatenate(looked) if looked else empty, said)


def _step(subject: Subject, cache: KVCache, token: int, top: int, hidden: list[Edit]) -> tuple[int, np.ndarray]:
    looked = _Looked(subject, 1, cache.length, top)
    ids = subject.tensor([[token]])
    if hidden:
        logits = trace(subject.model, ids, cache=cache, edits=hidden).logits
    else:
        watching = Watching(looked, cache=cache, windows=subject.model.config.windows)
        logits = subject.model(ids, cache=cache, attend=watching)
    return int(logits[0, -1].argmax()), looked.found


@torch.no_grad()
def forced(subject: Subject, prompt: Prompt, masked: Iterable[Head] = (), phase: Phase = "all") -> Forced:
    """How likely the known answer is with some heads' attention made uniform."""
    ids, answer = prompt.ids, prompt.answer_ids
    whole = [*ids, *answer[:-1]]
    subject.refuse_above_window(len(whole), "length")
    positions = None if phase == "all" else range(len(ids) - 1, len(whole))
    found = trace(subject.model, subject.tensor([whole]), edits=hide(masked, positions), keep=len(answer))
    return _forced(found.logits, subject.tensor([answer]))


def _forced(logits: Tensor, answer: Tensor) -> Forced:
    """Of logits [1,n,V] that predict answer [1,n]."""
    padded = torch.cat((answer[:, :1], answer), 1)
    losses = position_losses(torch.cat((logits, logits[:, -1:]), 1), padded)
    return Forced(float(losses.double().mean()), float((logits.argmax(-1) == answer).double().mean()))


class _Looked:
    """Notes where rows look most: found [steps, L, H, top]."""

    def __init__(self, subject: Subject, steps: int, first: int, top: int) -> None:
        self.found = np.zeros((steps, subject.layers, subject.heads, top), int)
        self._first, self._top = first, top

    def __call__(self, layer: int, start: int, rows: Tensor) -> None:
        seen = winners(rows[0].float().cpu().numpy(), self._top)  # [H, t, top]
        place = start - self._first
        self.found[place : place + seen.shape[1], layer] = seen.transpose(1, 0, 2)
