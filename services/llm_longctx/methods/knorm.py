"""L2-norm eviction (2024): keys of small norm attract attention."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView


class KNorm(EvictionMethod):
    """Keeps the entries whose keys are shortest. Needs no query, and nothing is protected.

    The paper leaves the first two layers alone; a head plan can.
    """

    name: ClassVar[str] = "knorm"
    evidence = "keys"
    optional_knobs: ClassVar = frozenset({"recent", "critical", "first_stage", "critical_epsilon"})
    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.4},
        {"budget": 13, "allocation": "layer", "safeguard": 0.4, "safeguard_rule": "mix", "prefill": "none", "every": 4},
        {"ratio": 0.5, "allocation": "pyramid", "beta": 3.0, "every": 3},
    )

    def score(self, view: ScoringView) -> Tensor:
        length: Tensor = view.k.norm(dim=-1)
        return -length
