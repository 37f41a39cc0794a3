"""RazorAttention (2024): heads that don't retrieve keep sinks, a window, and one entry that stands for all they drop.

Written from the paper's algorithm; `variant="capacity"` is a third party's reading, in which the window counts all.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference
from services.llm_longctx.methods.core.head_roles import Roles, count_full, entries_by_role, resolve_heads
from services.llm_longctx.methods.core.hook_inputs import CacheView, PostPrefillView
from services.llm_longctx.methods.core.hook_results import CacheUpdate, Footprint, HeadRoles, RetentionPolicy, Virtual
from services.llm_longctx.methods.core.oracle import attention_weights, repeat_kv
from services.llm_longctx.methods.core.sparsity_claims import build_method_claim
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan


class Razor(AttentionMethod):
    """After a dense prefill, heads that don't retrieve keep sinks, a window and a compensation entry.

    Below `window_min` tokens nothing is saved. The entry is the mean of the dropped keys and values; its logit gets
    ln of their number, so that it weighs as much as they would if they were alike.
    """

    name: ClassVar[str] = "razor"
    phases = frozenset({"decode"})
    actions = frozenset({"eviction"})
    granularity = "head"
    evidence = "head plan"
    needs_plan = True
    sparsity = build_method_claim("razor", granularity="head", mask="static", decode="sparse")

    sink: int = Field(4, ge=0, le=65536, description="First entries kept.")
    window_min: int = Field(4000, ge=1, le=1 << 20, description="Floor of the window of last entries.")
    window_div: int = Field(5, ge=1, description="The window is prompt / window_div, and at least window_min.")
    compensation: Literal["weighted", "unweighted", "none"] = Field(
        "weighted", description="Whether the dropped entries' mean counts as many, as one, or is left out."
    )
    variant: Literal["paper", "capacity"] = Field("paper", description="`capacity`: the window counts all entries.")
    slide: bool = Field(False, description="Keep the window's size while decoding; the oldest joins the mean.")
    roles: Roles | None = Field(None, description="Per layer and key/value head 1 (retrieval) or 0; instead of a plan.")

    contract_knobs: ClassVar = (
        {"sink": 2, "window_min": 6, "window_div": 8},
        {"sink": 1, "window_min": 3, "window_div": 4, "slide": True},
        {"sink": 2, "window_min": 9, "variant": "capacity"},
    )

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_new: Tensor | None = None,
        k_new: Tensor | None = None,
        v_new: Tensor | None = None,
        **inputs: Any,
    ) -> Reference:
        """The last M queries q [H,M,d] over N compressed keys k, v [G,N,d] (section 2); mask [H,M,N].

        With steps q_new [H,T,d], k_new, v_new [G,T,d] it is they that read (section 4); mask [H,T,N+T].
        """
        if q_new is not None and k_new is not None and v_new is not None:
            return self._stepped(q_new, torch.cat((k, k_new), 1), torch.cat((v, v_new), 1), k.shape[1])
        (H, M, d), N = q.shape, k.shape[1]
        begin, end = self._dropped(N)
        k_comp, v_comp = (x[:, begin:end].double().mean(1) if end > begin else x[:, 0].double() * 0 for x in (k, v))
        seen = torch.arange(N) <= torch.arange(N - M, N)[:, None]
        seen[:, begin:end] = False
        virtual = int(end > begin and self._compensates)
        keys = torch.cat((repeat_kv(k, H), repeat_kv(k_comp[:, None], H)), 1)
        values = torch.cat((repeat_kv(v, H), repeat_kv(v_comp[:, None], H)), 1)
        logits = q.double() @ keys.mT * d**-0.5
        logits[..., N] += self._weight(end - begin)
        logits = logits.masked_fill(~torch.cat((seen, torch.full((M, 1), bool(virtual))), 1), float("-inf"))
        extras = {"k_comp": k_comp, "v_comp": v_comp, "n_dropped": end - begin, "entries": N - (end - begin) + virtual}
        return Reference(logits.softmax(-1) @ values, seen.expand(H, M, N), extras)

    def _stepped(self, q: Tensor, k: Tensor, v: Tensor, prompt: int) -> Reference:
        """Steps q [H,T,d] over what is left of a prompt and over each other: k, v [G,N+T,d]."""
        (H, T, _), total = q.shape, k.shape[1]
        begin, end = self._dropped(prompt)
        gone, kept = list(range(begin, end)), [p for p in range(prompt) if not begin <= p < end]
        mask, rows = torch.zeros(H, T, total, dtype=torch.bool), []
        for step in range(T):
            kept.append(prompt + step)
            mask[:, step, kept] = True
            keys, values, bias = k[:, kept].double(), v[:, kept].double(), torch.zeros(len(kept), dtype=torch.float64)
            if gone and self._compensates:
                keys, values = (
                    torch.cat((x, y[:, gone].double().mean(1, keepdim=True)), 1) for x, y in ((keys, k), (values, v))
                )
                bias = torch.cat((bias, torch.tensor([self._weight(len(gone))], dtype=torch.float64)))
            seen = torch.ones(1, len(bias), dtype=torch.bool)
            rows.append(attention_weights(q[:, step : step + 1], keys, seen, bias) @ repeat_kv(values, H))
            window = [position for position in kept if position >= self.sink]
            if self.slide and len(window) > self._window(prompt):
                kept.remove(window[0])
                gone.append(window[0])
        return Reference(torch.cat(rows, 1), mask)

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> HeadRoles:
        return resolve_heads(self.name, config, plan, self.roles, None)

    def after_prefill(self, view: PostPrefillView) -> CacheUpdate:
        if not view.last:
            return CacheUpdate(memo=view.memo)
        begin, end = self._dropped(view.length)
        window = self._window(view.length)
        kept = {
            g: RetentionPolicy(
                positions=_outside(begin, end, view.length, head.positions.device) if end > begin else None,
                virtual=self._mean(head, begin, end) if end > begin and self._compensates else None,
                sink=self.sink,
                slide=window if self.slide else None,
                absorb=self.slide and self._compensates,
                weighted=self._weighted,
            )
            for g, (head, full) in enumerate(zip(view.heads, view.full, strict=True))
            if not full
        }
        return CacheUpdate(retain=kept, memo=view.memo)

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        begin, end = self._dropped(prompt)
        held = prompt - (end - begin) + (end > begin and self._compensates)
        cut = min(prompt + new, self.sink + self._window(prompt) + 1) + self._compensates if self.slide else held + new
        return Footprint(entries_by_role(heads, config, prompt + new, min(cut, prompt + new + 1)))

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        heads = config.layers * config.kv_heads
        full = count_full(self.head_plan(config, plan), config)
        if entries >= heads * (prompt + new):
            return self.with_knobs(window_min=max(prompt, 1), window_div=prompt + 1)
        room = (entries - full * (prompt + new)) // max(heads - full, 1)
        window = room - self.sink - 1 - (1 if self.slide else new)
        if full == heads or window < 1:
            least = full * (prompt + new) + (heads - full) * (self.sink + 2 + new)
            detail = f"With {full} of {heads} heads whole, razor holds at least {least:,} entries, not {entries:,}."
            raise InvalidOption(detail, hint="Ask for more, or use a plan with fewer retrieval heads.", field="longctx")
        return self.with_knobs(window_min=window, window_div=prompt + 1, variant="paper")

    @property
    def _compensates(self) -> bool:
        return self.compensation != "none" or self.variant == "capacity"

    @property
    def _weighted(self) -> bool:
        return self.compensation == "weighted" and self.variant == "paper"

    def _weight(self, dropped: int) -> float:
        return math.log(dropped) if dropped and self._weighted else 0.0

    def _window(self, tokens: int) -> int:
        """Last entries kept of a prompt."""
        window = max(self.window_min, tokens // self.window_div)
        return window if self.variant == "paper" else max(window - self.sink - 1, 0)

    def _dropped(self, tokens: int) -> tuple[int, int]:
        """Positions [begin, end) that are dropped of a prompt; empty where nothing is saved."""
        begin, end = self.sink, tokens - self._window(tokens)
        # A virtual entry for a single one would save nothing: the capacity reading counts it.
        return (begin, end) if end > begin + (self.variant == "capacity") else (begin, begin)

    def _mean(self, head: CacheView, begin: int, end: int) -> Virtual:
        """The entry that stands for positions [begin, end)."""
        gone = (head.positions >= begin) & (head.positions < end)
        wide = torch.promote_types(head.k.dtype, torch.float32)
        k, v = (x[gone].to(wide).mean(0).to(x.dtype) for x in (head.k, head.v))
        return Virtual(k, v, self._weight(end - begin), end - begin)


def _outside(begin: int, end: int, length: int, device: torch.device) -> Tensor:
    """Positions before `begin`, and from `end` on."""
    return torch.cat((torch.arange(begin, device=device), torch.arange(end, length, device=device)))
