"""`/v1/judge/templates`: the prompts that judges use, and what they look like filled in. Asks no model."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from services.relevance_judge.prompt_template import Template, get_template, load_templates, make_fence, render_prompt
from services.relevance_judge.schemas import StrictModel
from shared.serving.http.openapi_routes import problems

router = APIRouter()

Name = Annotated[str, Path(description="Id of the template, as in the list.")]


class TemplateOut(BaseModel):
    """A template with its digest."""

    digest: str
    template: Template


@router.get("/templates")
def list_templates() -> list[TemplateOut]:
    """List all templates."""
    return [TemplateOut(digest=one.digest, template=one) for one in load_templates().values()]


@router.get("/templates/{name}", responses=problems(404, 422))
def show_template(name: Name) -> TemplateOut:
    """Show one template, by id or `id@digest`."""
    found = get_template(name)
    return TemplateOut(digest=found.digest, template=found)


class RenderIn(StrictModel):
    """A pair to see in a prompt."""

    query: str = Field(min_length=1, description="The query.")
    passage: str = Field(min_length=1, description="The passage.")
    seed: int | None = Field(None, ge=0, description="Makes the delimiters repeatable.")


class RenderOut(BaseModel):
    """The model's input; one list of turns per criterion, or one alone."""

    system: str
    turns: list[tuple[str, ...]]


@router.post("/templates/{name}/render", responses=problems(404, 422))
def render_template(name: Name, body: RenderIn) -> RenderOut:
    """Render a template without asking any model."""
    template, mark = get_template(name), make_fence(body.query, body.passage, body.seed)
    shown = [
        render_prompt(template, body.query, body.passage, mark=mark, criterion=criterion)
        for criterion in template.criteria.values() or [""]
    ]
    return RenderOut(system=template.system, turns=[one.turns for one in shown])
