"""An eviction method: keeps entries whose keys are unlike their neighbours'."""

from torch import Tensor

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView

__all__ = ["ToyNovelKeys"]


class ToyNovelKeys(EvictionMethod):
    """Keeps keys that differ most from the one before."""

    name = "toy-novel-keys"

    def score(self, view: ScoringView) -> Tensor:
        """Squared distance (G, n) to the key before; the first one's is its norm."""
        step = view.k.clone()
        step[:, 1:] -= view.k[:, :-1]
        return step.square().sum(-1)
