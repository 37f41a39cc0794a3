"""Sampler: draws the next token of one answer from its logits.

Each answer has a generator of its own, so that its draws do not depend on its neighbours. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.engine.request import Grammar, Sampling, ScoredToken

__all__ = ["Sampler", "token_logprobs"]

_GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them says nothing but the maximum."""


class Sampler:
    """The draws of one answer."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab: int, grammar: Grammar | None = None) -> None:
        self._sampling = sampling
        self._grammar = grammar
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)
        self._produced = torch.zeros(vocab)
        self._seen = torch.zeros(vocab, dtype=torch.bool)
        if sampling.repetition_penalty != 1:
            self._seen[torch.tensor(list(prompt), dtype=torch.long)] = True
        self._bias = self._bias_of(sampling, vocab)

    def draw(self, logits: Tensor, top: int | None = None) -> ScoredToken:
        """Choose from logits [V] (float32 on the CPU), and remember the choice for the penalties."""
        adjusted = self._adjust(logits)
        if self._grammar is not None and (mask := self._grammar.mask()) is not None:
            adjusted = adjusted.masked_fill(~mask, -torch.inf)
        if self._sampling.temperature < _GREEDY_BELOW:
            chosen = int(adjusted.numpy().argmax())
        else:
            chosen = self._sample(adjusted)
        self._produced[chosen] += 1
        self._seen[chosen] = True
        if self._grammar is not None:
            self._grammar.advance(chosen)
        return ScoredToken(chosen) if top is None else token_logprobs(logits[None], [chosen], top)[0]

    @property
    def is_finished(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._grammar is not None and self._grammar.is_finished

    def _adjust(self, logits: Tensor) -> Tensor:
        """Logits after bias and penalties."""
        sampling = self._sampling
        if self._bias is not None:
            logits = logits + self._bias
        if sampling.repetition_penalty != 1:
            divided = torch.where(
                logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty
            )
            logits = torch.where(self._seen, divided, logits)
        if sampling.presence_penalty or sampling.frequency_penalty:
            used = self._produced
            logits = logits - sampling.frequency_penalty * used - sampling.presence_penalty * (used > 0)
        return logits

    def _sample(self, logits: Tensor) -> int:
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
        drawn = int(torch.multinomial(probs, 1, generator=self._generator))
        return drawn if ids is None else int(ids[drawn])

    @staticmethod
    def _bias_of(sampling: Sampling, vocab: int) -> Tensor | None:
        if not sampling.logit_bias:
            return None
        bias = torch.zeros(vocab)
        bias[list(sampling.logit_bias)] = torch.tensor(list(sampling.logit_bias.values()))
        return bias


def token_logprobs(logits: Tensor, chosen: Sequence[int], top: int) -> list[ScoredToken]:
    """Tokens `chosen` [T] with their log-probabilities and the `top` likeliest, from logits [T,V]."""
    logs = logits.log_softmax(-1)
    own = logs.gather(1, torch.tensor(chosen)[:, None])[:, 0].tolist()
    values, ids = logs.topk(min(top, logs.shape[1]))
    likeliest = [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return [ScoredToken(t, lp, best) for t, lp, best in zip(chosen, own, likeliest, strict=True)]
