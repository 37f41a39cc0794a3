"""`/v1/longctx/methods`: the attention methods that a request may ask for, their knobs, and what they claim.

All follows from the classes. Knows HTTP and the catalogue; knows no engine.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.llm_longctx.methods import AttentionMethod, methods
from shared.errors import NotFound
from shared.serving.http.openapi_routes import problems
from shared.serving.http.system_routes import LintedClaim
from shared.sparsity import lint

__all__ = ["router"]

router = APIRouter(prefix="/v1/longctx/methods", tags=["longctx"])


class MethodFacts(BaseModel):
    """One attention method, as its class tells it."""

    name: str = Field(description="What `longctx.method` calls it.")
    summary: str
    help: str
    phases: list[str] = Field(description="Where it acts: prefill, decode; empty is dense.")
    actions: list[str] = Field(description="visibility, eviction, copy, transform.")
    granularity: str
    evidence: str = Field(description="What it decides by.")
    needs_plan: bool = Field(description="Whether it works by a head plan.")
    knobs: dict[str, Any] = Field(description="JSON schema of its knobs.")
    sparsity: LintedClaim | None = Field(None, description="What it claims, and what the claim still owes.")


@router.get("")
async def catalogue() -> list[MethodFacts]:
    """All attention methods with their knobs and claims."""
    return [_facts(kind) for kind in methods().values()]


@router.get("/{name}", responses=problems(404))
async def one(name: str) -> MethodFacts:
    """One attention method."""
    return _facts(_known(name))


@router.get("/{name}/sparsity", responses=problems(404))
async def sparsity(name: str) -> LintedClaim:
    """What is sparse about a method, how it was measured and against what, read by the lint."""
    if (told := _claim(_known(name))) is None:
        detail = f"The method {name!r} does not claim to be sparse."
        raise NotFound(detail)
    return told


def _known(name: str) -> type[AttentionMethod]:
    if (kind := methods().get(name)) is None:
        detail = f"There is no attention method {name[:64]!r}; known are {', '.join(methods())}."
        raise NotFound(detail)
    return kind


def _claim(kind: type[AttentionMethod]) -> LintedClaim | None:
    return None if kind.sparsity is None else LintedClaim(claim=kind.sparsity, findings=lint(kind.sparsity))


def _facts(kind: type[AttentionMethod]) -> MethodFacts:
    text = (kind.__doc__ or "").strip()
    schema = kind.model_json_schema()
    return MethodFacts(
        name=kind.name,
        summary=text.partition("\n")[0],
        help="\n".join(line.strip() for line in text.splitlines()),
        phases=sorted(kind.phases),
        actions=sorted(kind.actions),
        granularity=kind.granularity,
        evidence=kind.evidence,
        needs_plan=kind.needs_plan,
        knobs={k: schema[k] for k in ("properties", "$defs") if k in schema},
        sparsity=_claim(kind),
    )
