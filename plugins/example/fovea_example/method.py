"""An attention method: evict the entries whose keys are most like the key before."""

from torch import Tensor

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView


class NovelKeys(EvictionMethod):
    """Keep keys that differ most from the key before."""

    name = "novel-keys"

    def score(self, view: ScoringView) -> Tensor:
        """Return the squared distance (G, n) to the key before; for the first key, its squared norm."""
        step = view.k.clone()
        step[:, 1:] -= view.k[:, :-1]
        return step.square().sum(-1)
