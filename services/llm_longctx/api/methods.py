"""Routes under `/v1/longctx/methods`: the attention methods with their knobs and sparsity claims.

All follows from the classes. Knows HTTP and the registry of methods; knows no engine.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from fovea.errors import NotFound
from services.llm_longctx.methods import AttentionMethod, methods
from shared.serving.http.openapi_routes import problems
from shared.serving.http.system_routes import LintedClaim
from shared.sparsity import lint

router = APIRouter(prefix="/v1/longctx/methods", tags=["longctx"])

Name = Annotated[str, Path(description="Name of the attention method, as in `GET /v1/longctx/methods`.")]


class MethodDescription(BaseModel):
    """One attention method, described by its class."""

    name: str = Field(description="Its name in `longctx.method`.")
    summary: str
    help: str
    phases: list[str] = Field(description="Where it acts: prefill, decode; empty is dense.")
    actions: list[str] = Field(description="visibility, eviction, copy, transform.")
    granularity: str
    evidence: str = Field(description="Evidence that it decides by.")
    needs_plan: bool = Field(description="Whether it works by a head plan.")
    knobs: dict[str, Any] = Field(description="JSON schema of its knobs.")
    sparsity: LintedClaim | None = Field(None, description="Its claim, and the gaps of the claim.")


@router.get("")
async def catalogue() -> list[MethodDescription]:
    """All attention methods with their knobs and claims."""
    return [_describe(kind) for kind in methods().values()]


@router.get("/{name}", responses=problems(404))
async def one(name: Name) -> MethodDescription:
    """One attention method."""
    return _describe(_find_method(name))


@router.get("/{name}/sparsity", responses=problems(404))
async def sparsity(name: Name) -> LintedClaim:
    """A method's sparsity claim: what is sparse, how it was measured and against what, with the lint's findings."""
    if (claim := _lint_claim(_find_method(name))) is None:
        raise NotFound(f"The method {name!r} does not claim to be sparse.")
    return claim


def _find_method(name: str) -> type[AttentionMethod]:
    if (kind := methods().get(name)) is None:
        raise NotFound(f"There is no attention method {name[:64]!r}; known are {', '.join(methods())}.")
    return kind


def _lint_claim(kind: type[AttentionMethod]) -> LintedClaim | None:
    return None if kind.sparsity is None else LintedClaim(claim=kind.sparsity, findings=lint(kind.sparsity))


def _describe(kind: type[AttentionMethod]) -> MethodDescription:
    text = (kind.__doc__ or "").strip()
    schema = kind.model_json_schema()
    return MethodDescription(
        name=kind.name,
        summary=text.partition("\n")[0],
        help="\n".join(line.strip() for line in text.splitlines()),
        phases=sorted(kind.phases),
        actions=sorted(kind.actions),
        granularity=kind.granularity,
        evidence=kind.evidence,
        needs_plan=kind.needs_plan,
        knobs={k: schema[k] for k in ("properties", "$defs") if k in schema},
        sparsity=_lint_claim(kind),
    )
