"""Head roles, full or cut, from a head plan or a knob. Knows nothing about what is kept."""

from typing import Literal

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.hook_results import HeadRoles
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan

Roles = tuple[tuple[Literal[0, 1], ...], ...]
"""[L][G], 1 = full."""


def resolve_heads(
    name: str, config: DecoderConfig, plan: HeadPlan | None, roles: Roles | None, share: float | None
) -> HeadRoles:
    """Full heads by a knob, by a plan's evidence cut at `share`, or by its roles.

    Raises InvalidOption: there is neither knob nor plan, the plan has no roles, or a knob does not fit the model.
    """
    if roles is not None:
        if len(roles) != config.layers or {len(row) for row in roles} != {config.kv_heads}:
            detail = f"roles must be {config.layers} rows of {config.kv_heads} numbers, one per key/value head."
            raise InvalidOption(detail, field="longctx.roles")
        return HeadRoles(full=tuple(tuple(bool(x) for x in row) for row in roles))
    if share is not None and share in {0.0, 1.0}:
        return HeadRoles(full=((bool(share),) * config.kv_heads,) * config.layers)
    if plan is None or plan.roles is None:
        detail = f"{name} needs to know which heads are full, and there is no head plan with roles for this model."
        hint = "Make one with `fovea probe head-plans`, or give roles."
        raise InvalidOption(detail, hint=hint, field="longctx.roles")
    table = plan.roles if share is None else plan.with_share(share).roles or ()
    return HeadRoles(full=tuple(tuple(bool(x) for x in row) for row in table))


def count_full(heads: HeadRoles, config: DecoderConfig) -> int:
    """How many key/value heads of the model are full."""
    return sum(sum(heads.full_in(layer, config.kv_heads)) for layer in range(config.layers))


def entries_by_role(heads: HeadRoles, config: DecoderConfig, full: int, cut: int) -> tuple[tuple[int, ...], ...]:
    """Entries [L][G]: `full` for full heads, `cut` for the others."""
    return tuple(
        tuple(full if role else cut for role in heads.full_in(layer, config.kv_heads)) for layer in range(config.layers)
    )
