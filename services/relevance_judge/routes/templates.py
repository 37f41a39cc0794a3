"""`/v1/judge/templates`: the prompts that judges use, and what they look like filled in. No model is asked."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.relevance_judge.prompt_template import Template, fence, render, template, templates
from services.relevance_judge.routes.strict_model import Given
from shared.serving.http.openapi_routes import problems

__all__ = ["router"]

router = APIRouter()


class TemplateOut(BaseModel):
    """A template with its digest."""

    digest: str
    template: Template


@router.get("/templates")
def list_templates() -> list[TemplateOut]:
    """All templates."""
    return [TemplateOut(digest=one.digest, template=one) for one in templates().values()]


@router.get("/templates/{name}", responses=problems(404, 422))
def show_template(name: str) -> TemplateOut:
    """One template, by id or `id@digest`."""
    found = template(name)
    return TemplateOut(digest=found.digest, template=found)


class RenderIn(Given):
    """A pair to see in a prompt."""

    query: str = Field(min_length=1, description="The query.")
    passage: str = Field(min_length=1, description="The passage.")
    seed: int | None = Field(None, ge=0, description="Makes the marks repeatable.")


class RenderOut(BaseModel):
    """What the model would be shown; one list of turns per criterion, or one alone."""

    system: str
    turns: list[tuple[str, ...]]


@router.post("/templates/{name}/render", responses=problems(404, 422))
def dry_run(name: str, body: RenderIn) -> RenderOut:
    """Render a template without asking any model."""
    chosen, mark = template(name), fence(body.query, body.passage, body.seed)
    asked = chosen.criteria.values() or [""]
    shown = [render(chosen, body.query, body.passage, mark=mark, criterion=criterion).turns for criterion in asked]
    return RenderOut(system=chosen.system, turns=shown)
