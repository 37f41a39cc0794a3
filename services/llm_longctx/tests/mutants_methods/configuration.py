"""Methods that say the wrong thing about their knobs and plans."""

from typing import ClassVar

import torch
from pydantic import Field

from services.llm_longctx.methods import Reference
from services.llm_longctx.methods.core.hook_results import HeadRoles
from services.llm_longctx.tests.method_contract.oracle import softmax_under
from services.llm_longctx.tests.mutants_methods.sound import Dotted, Mean, Window


class Deaf(Dotted):
    """Has a knob that nothing asks for."""

    loudness: int = Field(3, ge=1)


class HalfDeaf(Dotted):
    """Has a knob that its reference follows and its hooks don't; the contract's setting hides that."""

    skip: int = Field(0, ge=0)

    def reference(self, q, k, v):
        right = super().reference(q, k, v)
        mask = right.mask.clone()
        mask[:, :, : self.skip] &= torch.eye(q.shape[1], dtype=torch.bool)[:, : self.skip]
        return Reference(softmax_under(q, k, v, mask), mask)


class Anonymous(Dotted):
    """Leaves its knobs out of what cached prefixes depend on."""

    def identity(self):
        return {"method": self.name}


class Planless(Mean):
    """Says that it needs a head plan, and ignores it."""

    needs_plan = True

    def head_plan(self, config, plan):
        return HeadRoles(((False,) * config.kv_heads,) * config.layers)


class Molten(Window):
    """Can be changed while it serves."""

    model_config: ClassVar = {"frozen": False}


class Twisted(Window):
    """Does not come back from JSON as what it was."""

    def model_dump_json(self, **options):
        return super().model_dump_json(exclude={"recent"})
