"""Sampler: draws the next token of one answer from its logits.

Each answer has a generator of its own, so that its draws do not depend on its neighbours. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from shared.lm.host_transfer import to_device, to_host

_GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them says nothing but the maximum."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_p: The smallest set of likeliest tokens that holds this much probability.
        top_k: So many likeliest tokens; 0 means all.
        min_p: Tokens with at least this share of the likeliest one's probability.
        seed: Makes the draws repeatable, whatever else is in the batch; None draws afresh.
        presence_penalty: Taken once from the logit of each token that was produced.
        frequency_penalty: Taken for each time that it was produced.
        repetition_penalty: Divides positive, multiplies negative logits of tokens in prompt and answer.
        logit_bias: Added to logits, by token id.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token with its log-probability under the model (nats, before temperature and penalties), where asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Grammar(Protocol):
    """Constrains one answer; it remembers the answer so far."""

    def mask(self) -> Tensor | None:
        """Which tokens may come next: bool [V], at least one, stop tokens where the answer may be over; None for all.

        Raises:
            FoveaError: None may.
        """
        ...

    def advance(self, token: int) -> None:
        """This token came."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        ...


class Sampler:
    """The draws of one answer. Its choice is made where the logits lie, and read together with those of others."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab: int, grammar: Grammar | None = None) -> None:
        self._sampling = sampling
        self._grammar = grammar
        self._generator = torch.Generator(device="cpu")
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)
        self._counts = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._marks = sampling.repetition_penalty != 1
        self._produced = torch.zeros(vocab if self._counts else 0, device="cpu")
        self._seen = torch.zeros(vocab if self._marks else 0, dtype=torch.bool, device="cpu")
        if self._marks:
            self._seen[torch.tensor(list(prompt), dtype=torch.long, device="cpu")] = True
        self._bias = self._bias_of(sampling, vocab)
        self._top: int | None = None

    def choose(self, logits: Tensor, top: int | None = None) -> Tensor:
        """Choose from logits [V]: float64 numbers for `accept`, which may lie on a device.

        Args:
            logits: Float32.
            top: Log-probabilities of so many of the likeliest, and of the choice, are among them; None leaves both out.
        """
        self._move(logits.device)
        adjusted, self._top = self._adjust(logits), top
        if self._grammar is not None and (mask := self._grammar.mask()) is not None:
            adjusted = adjusted.masked_fill(~to_device(mask, logits.device), -torch.inf)
        if self._sampling.temperature >= _GREEDY_BELOW:
            chosen = self._sample(adjusted)
        elif logits.device.type == "cpu":  # NumPy's is several times faster
            chosen = torch.tensor([int(adjusted.numpy().argmax())], device="cpu")
        else:
            chosen = adjusted.argmax(-1, keepdim=True)
        if top is None:
            return chosen.double()
        return torch.cat((chosen.double(), _logprobs(logits[None], chosen, top)[0]))

    def accept(self, words: Sequence[float]) -> ScoredToken:
        """Take what `choose` found, once it was read, and remember the choice for the penalties."""
        chosen = int(words[0])
        if self._counts:
            self._produced[chosen] += 1
        if self._marks:
            self._seen[chosen] = True
        if self._grammar is not None:
            self._grammar.advance(chosen)
        return ScoredToken(chosen) if self._top is None else _to_scored(chosen, words[1:])

    def draw(self, logits: Tensor, top: int | None = None) -> ScoredToken:
        """Choose, and read the choice at once."""
        return self.accept(read_choices([self.choose(logits, top)])[0])

    @property
    def is_finished(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._grammar is not None and self._grammar.is_finished

    def _adjust(self, logits: Tensor) -> Tensor:
        """Logits after bias and penalties."""
        sampling = self._sampling
        if self._bias is not None:
            logits = logits + self._bias
        if self._marks:
            divided = torch.where(
                logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty
            )
            logits = torch.where(self._seen, divided, logits)
        if self._counts:
            used = self._produced
            logits = logits - sampling.frequency_penalty * used - sampling.presence_penalty * (used > 0)
        return logits

    def _move(self, device: torch.device) -> None:
        """Bring what it remembers to where the logits lie, with the first draw."""
        self._produced, self._seen = to_device(self._produced, device), to_device(self._seen, device)
        self._bias = None if self._bias is None else to_device(self._bias, device)

    def _sample(self, logits: Tensor) -> Tensor:
        """One token [1], by one number of the answer's own generator: the same on every device."""
        sampling = self._sampling
        probs, ids = ((logits - logits.max()) / sampling.temperature).softmax(-1), None
        if sampling.min_p > 0:
            probs = probs.where(probs >= sampling.min_p * probs.max(), 0.0)
        if sampling.top_k or sampling.top_p < 1:
            probs, ids = probs.topk(min(sampling.top_k or len(probs), len(probs)))
        if sampling.top_p < 1:
            # A token stays while those before it hold less than top_p of what top_k left; the first always stays.
            before = probs.cumsum(-1) - probs
            probs = probs.where(before < max(sampling.top_p, 1e-9) * probs.sum(), 0.0)
        below = probs.cumsum(-1, dtype=torch.float64)
        share = float(torch.rand((), dtype=torch.float64, device="cpu", generator=self._generator))
        drawn = torch.searchsorted(below, below[-1:] * share, right=True).clamp(max=len(probs) - 1)
        return drawn if ids is None else ids.gather(0, drawn)

    @staticmethod
    def _bias_of(sampling: Sampling, vocab: int) -> Tensor | None:
        if not sampling.logit_bias:
            return None
        bias = torch.zeros(vocab, device="cpu")
        bias[list(sampling.logit_bias)] = torch.tensor(list(sampling.logit_bias.values()), device="cpu")
        return bias


def read_choices(choices: Sequence[Tensor]) -> list[list[float]]:
    """Read what several samplers chose, all of it at once."""
    if not choices:
        return []
    sizes = [len(one) for one in choices]
    read = to_host(torch.cat(list(choices))).tolist()
    ends = list(accumulate(sizes))
    return [read[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def token_logprobs(logits: Tensor, chosen: Sequence[int], top: int) -> list[ScoredToken]:
    """Tokens `chosen` [T] with their log-probabilities and the `top` likeliest, from logits [T,V]."""
    rows = to_host(_logprobs(logits, to_device(list(chosen), logits.device, torch.int64), top)).tolist()
    return [_to_scored(token, words) for token, words in zip(chosen, rows, strict=True)]


def _logprobs(logits: Tensor, chosen: Tensor, top: int) -> Tensor:
    """Log-probabilities of tokens [T] and of the likeliest, then the ids of these: [T, 1 + 2·top] float64."""
    logs = logits.log_softmax(-1)
    values, ids = logs.topk(min(top, logs.shape[1]))
    return torch.cat((logs.gather(1, chosen[:, None]).double(), values.double(), ids.double()), 1)


def _to_scored(token: int, words: Sequence[float]) -> ScoredToken:
    half = len(words) // 2
    ids = [int(i) for i in words[1 + half :]]
    return ScoredToken(token, words[0], tuple(zip(ids, words[1 : 1 + half], strict=True)))
