"""Methods that compute something else than they say."""

import math

from services.llm_longctx.methods import Reference
from services.llm_longctx.methods.core.hook_results import HeadRoles
from services.llm_longctx.tests.method_contract.oracle import softmax_under
from services.llm_longctx.tests.mutants_methods.sound import Dotted, Mean, Window


class Scaled(Window):
    """Its reference forgets the root of the width."""

    def reference(self, q, k, v, **inputs):
        return super().reference(q * q.shape[-1] ** 0.5, k, v)


class Foresighted(Dotted):
    """Its reference sees what comes."""

    def reference(self, q, k, v):
        mask = super().reference(q, k, v).mask.clone()
        mask[:, :-1] |= mask[:, 1:].clone()
        return Reference(softmax_under(q, k, v, mask), mask)


class Faded(Dotted):
    """Hooks and reference halve what all heads say, and nobody said that it transforms."""

    def head_plan(self, config, plan):
        return HeadRoles(calibrated=frozenset((i, h) for i in range(config.layers) for h in range(config.heads)))

    def epilogue(self, view):
        return view.out * 0.5, view.memo

    def reference(self, q, k, v):
        right = super().reference(q, k, v)
        return Reference(right.out * 0.5, right.mask)


class FadedOpenly(Faded):
    """The same, and it states it: rows still don't add up."""

    actions = frozenset({"visibility", "transform"})


class Summed(Mean):
    """Hooks and reference let a sum stand for what is dropped."""

    def _stand_in(self, x, dim):
        return x.sum(dim, keepdim=True)


class Heavy(Mean):
    """Hooks and reference let the mean weigh more than what it stands for."""

    def _weight(self, count):
        return math.log(count) + 1
