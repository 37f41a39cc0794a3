"""KeyDiff (2025): keys unlike the mean direction of all keys matter."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView


class KeyDiff(EvictionMethod):
    """Keeps the entries whose keys differ most from the rest. Needs no query, and nothing is protected.

    The paper reads long prompts block by block within the limit: `prefill="chunk"` with a `budget`.
    """

    name: ClassVar[str] = "keydiff"
    evidence = "keys"
    optional_knobs: ClassVar = frozenset(
        {"safeguard", "safeguard_rule", "beta", "recent", "critical", "first_stage", "critical_epsilon"}
    )
    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.4},
        {"budget": 11, "prefill": "chunk", "allocation": "layer", "every": 4},
    )

    def score(self, view: ScoringView) -> Tensor:
        anchor = functional.normalize(view.k, dim=-1, eps=1e-12).mean(1, keepdim=True)
        return -functional.cosine_similarity(view.k, anchor, dim=-1, eps=1e-8)
