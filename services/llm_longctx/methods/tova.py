"""TOVA (2024): what the last query reads, averaged over a layer's heads, is what stays."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView


class Tova(EvictionMethod):
    """Keeps what the last query attends to, one set for all heads of a layer.

    The paper evicts an entry at every step: `every=1` with a `budget`. The last entry stays, as released.
    """

    name: ClassVar[str] = "tova"
    evidence = "last query"
    optional_knobs: ClassVar = frozenset(
        {"safeguard", "safeguard_rule", "beta", "recent", "critical", "first_stage", "critical_epsilon", "allocation"}
    )
    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.4},
        {"budget": 13, "every": 2, "prefill": "none"},
    )

    def score(self, view: ScoringView) -> Tensor:
        (H, _, d), G = view.q.shape, len(view.k)
        logits = view.q[:, -1:].reshape(G, H // G, d) @ view.k.mT * d**-0.5
        mean: Tensor = logits.softmax(-1).mean((0, 1)).expand(G, -1)
        return mean.masked_fill(view.positions == view.tokens - 1, math.inf)
