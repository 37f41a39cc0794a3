"""KVzip (2025): the model repeats its prompt, and what it reads for that is what stays."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.eviction.scoring_inputs import split_output
from services.llm_longctx.methods.core.hook_inputs import Replay, ReplayView, ScoringView
from services.llm_longctx.methods.core.hook_results import HeadRoles
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan
from shared.lm.host_transfer import take_rows

_OVERLAP = 8
"""Last tokens of the chunk before, with which later replays begin."""
_TILE = 1 << 19, 1 << 26
"""Entries of an attention map that are made at a time, on a processor, whose caches hold them, and on a GPU."""


class KvZip(EvictionMethod):
    """Keeps what the model reads when it repeats the prompt, so that one cache serves any question.

    After a dense prefill the prompt is replayed in chunks behind an instruction; an entry's score is the most attention
    that it gets. The replays cost two to three prefills. `ask`, `ask_next` and `suffix` are token ids: the instruction
    of the first and of the later replays, and the turn change before the text; empty ones leave them out.
    """

    name: ClassVar[str] = "kvzip"
    evidence = "replays of the prompt"
    optional_knobs: ClassVar = frozenset(
        {
            "safeguard",
            "safeguard_rule", "beta", "recent", "critical", "first_stage", "critical_epsilon",
            "every", "prefill", "ask", "ask_next", "suffix", "prefix", "sink",
        }
    )  # fmt: skip
    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"budget": 13, "chunk": 16, "sink": 1, "plus": True, "allocation": "head", "ask": (3, 5), "suffix": (7,)},
        {"ratio": 0.4, "chunk": 24, "sink": 2, "safeguard": 0.3},
    )

    allocation: Literal["head", "layer", "model", "pyramid"] = Field("model", description="Which entries compete.")
    safeguard: float = Field(0.0, ge=0, le=1, description="Share of the even budget that each head has for itself.")
    prefill: Literal["end"] = Field("end", description="The prompt is cut when it has been replayed.")
    every: None = Field(None, description="Nothing is cut while decoding.")
    sink: int = Field(4, ge=0, le=65536, description="First entries, which are always kept.")
    chunk: int = Field(2048, ge=1, le=1 << 16, description="Tokens of the prompt that are replayed at a time.")
    plus: bool = Field(False, description="KVzip+: attention counts by what the value adds to the residual stream.")
    prefix: int = Field(0, ge=0, le=1 << 20, description="First tokens that are no context (a template's head): kept.")
    ask: tuple[int, ...] = Field((), max_length=256, description="Token ids of the first instruction.")
    ask_next: tuple[int, ...] = Field((), max_length=256, description="Token ids of later instructions.")
    suffix: tuple[int, ...] = Field((), max_length=256, description="Token ids of the turn change behind them.")

    @property
    def cuts_after_layers(self) -> bool:
        return True

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"hidden", "output"} if self.plus else frozenset())

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> HeadRoles:
        if any(window is not None for window in config.windows or ()):
            detail = "kvzip replays the whole prompt, and layers of this model hold a window of it only."
            raise InvalidOption(detail, hint="Ask for snapkv or expected_attention.", field="longctx.method")
        return super().head_plan(config, plan)

    def replays(self, ids: Sequence[int]) -> tuple[Replay, ...]:
        made: list[Replay] = []
        for begin in range(min(self.prefix, len(ids)), len(ids), self.chunk):
            end = min(begin + self.chunk, len(ids))
            ask = self.ask if not made else (*self.ask_next, *ids[begin - min(_OVERLAP, self.chunk) : begin])
            made.append(Replay(begin, end, (*ask, *self.suffix, *ids[begin:end])))
        return tuple(made)

    def summarize_replay(self, summary: object, view: ReplayView) -> object:
        before = summary if isinstance(summary, tuple) else ()
        orders = [head.positions.argsort() for head in view.heads]
        k = torch.stack([head.k[at] for head, at in zip(view.heads, orders, strict=True)])
        v = torch.stack([head.v[at] for head, at in zip(view.heads, orders, strict=True)])
        scored = self._score_replay(view.q, k, v, view.k, view.replay, view.hidden, view.output)
        return (*before, (view.replay.begin, scored))

    def score(self, view: ScoringView) -> Tensor:
        found = view.k.new_zeros(len(view.k), view.tokens)
        for begin, scores in view.summary if isinstance(view.summary, tuple) else ():
            found[:, begin : begin + scores.shape[1]] = take_rows(scores, view.kv_heads)
        return found.gather(1, view.positions).masked_fill(view.positions < max(self.sink, self.prefix), math.inf)

    def summarize_inputs(self, k: Tensor, v: Tensor, inputs: Mapping[str, Any]) -> object:
        summary = []
        for one in inputs.get("replays", ()):
            replay = Replay(int(one["start"]), int(one["end"]), ())
            scored = self._score_replay(one["q"], k, v, one["k"], replay, one.get("hidden"), inputs.get("wo"))
            summary.append((replay.begin, scored))
        return tuple(summary)

    def _score_replay(
        self, q: Tensor, k: Tensor, v: Tensor, own: Tensor, at: Replay, hidden: Tensor | None, output: Tensor | None
    ) -> Tensor:
        """The largest probability of each replayed entry [G,end-begin] over a group's heads and all queries [H,T,d]."""
        wide, (H, T, d), G = torch.promote_types(q.dtype, torch.float32), q.shape, len(k)
        sinks, n = min(self.sink, at.begin), at.end - at.begin
        keys = torch.cat((k[:, :sinks], k[:, at.begin : at.end], own), 1).to(wide)
        later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        asking, found = q.to(wide).reshape(G, -1, T, d) * d**-0.5, keys.new_zeros(G, H // G, n)
        step = max(1, _TILE[q.device.type == "cuda"] // (H * keys.shape[1]))
        for begin, end in pairwise((*range(0, T, step), T)):
            logits = asking[:, :, begin:end].reshape(G, -1, d) @ keys[:, : sinks + n + end].mT
            logits = logits.view(G, H // G, end - begin, -1)
            logits[..., sinks + n :].masked_fill_(later[begin:end, :end], -math.inf)
            seen = logits.softmax(-1)[..., sinks : sinks + n]
            if self.plus and hidden is not None:
                seen = seen / hidden[begin:end].to(wide).norm(dim=-1)[:, None]
            found = torch.maximum(found, seen.amax(2))
        if self.plus and output is not None:
            columns = split_output(output.to(wide), range(G), H // G, d)
            found *= torch.einsum("gnd,grcd->grnc", v[:, at.begin : at.end].to(wide), columns).norm(dim=-1)
        return found.amax(1)
