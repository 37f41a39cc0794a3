"""The oracle of eviction: what every row of a prompt and its answer sees, cut by cut. Knows no particular score."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from services.llm_longctx.methods.core.eviction.scoring_inputs import ScoringInputs
from services.llm_longctx.methods.core.hook_inputs import CacheView, ReadTokens


class CutRules(Protocol):
    """Decides about cuts, as an `EvictionMethod` does."""

    @property
    def prefill(self) -> str:
        """When the prompt is cut."""

    @property
    def every(self) -> int | None:
        """Decode steps from cut to cut."""

    @property
    def recent(self) -> int:
        """Queries remembered while decoding."""

    @property
    def query_window(self) -> int:
        """Queries that scores need."""

    @property
    def shares_model_budget(self) -> bool:
        """Whether all heads of the model compete."""

    def summarize(self, summary: object, tokens: ReadTokens) -> object:
        """Summary of all tokens for scores."""

    def make_scoring_inputs(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, inputs: Mapping[str, Any]
    ) -> ScoringInputs:
        """Scoring inputs of a whole prompt."""

    def keep_entries(
        self,
        scores: Sequence[Tensor],
        positions: Sequence[Tensor],
        count: int,
        norms: Sequence[Tensor] | None = None,
        tokens: int | None = None,
    ) -> list[Tensor]:
        """Which entries stay."""

    def counts(self, tokens: int, layers: int) -> list[int]:
        """Entries per head and layer after a cut."""

    def keep_positions(
        self,
        heads: Sequence[CacheView],
        q: Tensor,
        tokens: int,
        layer: int,
        count: int,
        scoring: ScoringInputs | None = None,
    ) -> list[Tensor]:
        """Positions that stay of each head."""


def replay(
    rules: CutRules,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunks: Sequence[int],
    steps: int,
    layer: int,
    layers: int,
    inputs: Mapping[str, Any] | None = None,
    scores: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Read a prompt in chunks and take steps behind it, in one layer whose heads are all cut.

    Args:
        rules: Scores and times of cuts.
        q: Queries of prompt and steps [H,N+T,d].
        k: Keys [G,N+T,d].
        v: Values [G,N+T,d].
        chunks: Lengths of the prompt's chunks; they add up to N.
        steps: T.
        layer: Which layer.
        layers: Of how many.
        inputs: Further inputs by name; see `EvictionMethod.scores`.
        scores: Of the prompt's entries [G,N].

    Returns:
        Visible pairs [H,N+T,N+T], and the positions held of the prompt when it is read, per key/value head.
    """
    (H, total, _), G, at = q.shape, k.shape[0], torch.arange(q.shape[1])
    prompt, mask, given = total - steps, torch.zeros(H, total, total, dtype=torch.bool), inputs or {}
    held = kept = [at[:0]] * G
    for begin, end in pairwise((*accumulate(chunks, initial=0), *range(prompt + 1, total + 1))):
        held = [torch.cat((one, at[begin:end])) for one in held]
        for h in range(H):
            mask[h, begin:end, held[h // (H // G)]] = True
        if is_cut_due(rules, end - prompt):
            count = rules.counts(max(end, prompt), layers)[layer]
            heads = [CacheView(k[g, one], v[g, one], one) for g, one in enumerate(held)]
            queries = q[:, end - count_queries(rules, prompt, end) : end]
            if rules.shares_model_budget and scores is not None:
                held = keep_against_rivals(rules, scores, count, given)
            else:
                scoring = summarize_to(rules, q, k, v, prompt, end, layer, given)
                held = rules.keep_positions(heads, queries, end, layer, count, scoring)
        kept = held if end <= prompt else kept
    return mask & (at <= at[:, None]), kept


def is_cut_due(rules: CutRules, step: int) -> bool:
    """Whether there is a cut after a decode step, counted from 1; 0 is the prompt's end, less a chunk before it."""
    if step > 0:
        return rules.every is not None and step % rules.every == 0
    return rules.prefill == "chunk" or (rules.prefill == "end" and step == 0)


def count_queries(rules: CutRules, prompt: int, end: int) -> int:
    """How many of the queries before position `end` are remembered."""
    if rules.query_window <= 1:
        return 1
    if end <= prompt:
        return min(end, rules.query_window)
    return min(rules.recent, min(prompt, rules.query_window) + end - prompt)


def keep_against_rivals(rules: CutRules, scores: Tensor, count: int, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Positions that a layer's heads keep of a prompt where all heads of the model compete: scores [G,N]."""
    rivals, begin = inputs.get("rivals") or (scores, 0)
    N = scores.shape[1]
    norms = inputs.get("rival_norms")
    stays = rules.keep_entries(list(rivals), [torch.arange(N)] * len(rivals), count, norms, tokens=N)
    return [one.nonzero()[:, 0] for one in stays[begin : begin + len(scores)]]


def summarize_to(
    rules: CutRules, q: Tensor, k: Tensor, v: Tensor, prompt: int, end: int, layer: int, inputs: Mapping[str, Any]
) -> ScoringInputs:
    """Scoring inputs as they are after `end` tokens of a prompt and its steps."""
    read, hidden = min(prompt, end), inputs.get("hidden")
    heads = tuple(inputs.get("kv_heads") or range(k.shape[0]))
    scoring = rules.make_scoring_inputs(q[:, :read], k[:, :read], v[:, :read], layer, inputs)
    for at in range(read, end):
        own = None if hidden is None else hidden[at : at + 1]
        token = ReadTokens(layer, q[:, at : at + 1], at, scoring.theta, own, heads, is_decoding=True)
        scoring = replace(scoring, summary=rules.summarize(scoring.summary, token))
    return scoring
