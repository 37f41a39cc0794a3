"""Prompt templates of judges: immutable, versioned, addressed by digest. The files are in `templates/`.

Rendering puts query and passage into the last turn between marks that are random per request, in one pass over the
template's own text: nothing inside query or passage is ever interpreted. Varying parts stand last, so that a server's
prefix cache can keep the shared beginning of all prompts.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fovea.errors import NotFound
from services.relevance_judge.parsing.grades import ParsedGrade, parse
from shared.registry.discovery import data_folders

Kind = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
"""Reader of a template: a judge lists its kinds, so a new judge may come with a kind of its own."""

_FIELD = re.compile(r"\{(query|passage|other|fence|criterion)\}")


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GradeScale(_FrozenModel):
    """The grades that a template asks for."""

    lowest: int = 0
    highest: int = 3


class Template(_FrozenModel):
    """One prompt.

    Attributes:
        kind: Output that it reads: `prompted-grade` (a grade in its answer), `yes-no` (the odds of the two),
            `digits` (their probabilities), `query-likelihood` (the probability of the query itself); of those that ask
            no language model, `similarity` (how alike the two turns are) and `lexical`.
        turns: The user's turns; between them the model answers. `{query}`, `{passage}`, `{other}`, `{fence}` and
            `{criterion}` are filled in.
        criteria: Name → text; with several, each is asked apart and the grade is their mean, rounded half up.
        words: Word → grade, for answers in words.
        lift: Of a query's likelihood, take off what it is without a passage: signals of easy and of rare queries become
            comparable, and the order within a query stays as it was.
        max_tokens: Longest answer of each turn.
    """

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    version: int = Field(1, ge=1)
    kind: Kind = "prompted-grade"
    summary: str
    scale: GradeScale = GradeScale()
    system: str = ""
    turns: tuple[str, ...] = Field(min_length=1)
    criteria: dict[str, str] = Field(default_factory=dict)
    words: dict[str, int] = Field(default_factory=dict)
    lift: bool = False
    max_tokens: int = Field(16, ge=1, le=2048)

    @model_validator(mode="after")
    def _shows_the_pair(self) -> Template:
        text = "".join(self.turns)
        required = ["{passage}", *(["{query}"] if self.kind != "query-likelihood" else [])]
        if missing := [name for name in required if name not in text]:
            raise ValueError(f"The turns must show {' and '.join(missing)}.")
        if _FIELD.search(self.system):
            raise ValueError("The system text is shared by all pairs, so it can't show one.")
        return self

    @property
    def digest(self) -> str:
        """sha256 over everything that the model or the parser sees, 16 hex digits."""
        hidden = {"summary"} if self.lift else {"summary", "lift"}  # older digests stay as they were
        return hashlib.sha256(self.model_dump_json(exclude=hidden).encode()).hexdigest()[:16]

    @property
    def pinned_id(self) -> str:
        """`id@digest`, as verdicts carry it."""
        return f"{self.id}@{self.digest}"

    def read_grade(self, answer: str) -> ParsedGrade:
        """The grade that an answer states, by its words where the template asks for words, else by the parser."""
        last = next((line for line in reversed(answer.splitlines()) if line.strip()), "")
        word = re.sub(r"^.*:", "", last).strip(" \t.!*\"'`").casefold()
        grades = {name.casefold(): grade for name, grade in self.words.items()}
        if word in grades:
            return ParsedGrade(grades[word], "label")
        return parse(answer, lowest=self.scale.lowest, highest=self.scale.highest)


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt ready to send: the system text and the user's turns."""

    system: str
    turns: tuple[str, ...]


def make_fence(query: str, passage: str, seed: int | None = None) -> str:
    """A delimiter that stands in neither text: random, or derived from the seed and the texts."""
    if seed is not None:
        return hashlib.sha256(f"{seed}\0{query}\0{passage}".encode("utf8", "surrogatepass")).hexdigest()[:16]
    mark = secrets.token_hex(8)
    return mark if mark not in query + passage else make_fence(query, passage)


def render_prompt(
    template: Template, query: str, passage: str, *, mark: str, criterion: str = "", other: str = ""
) -> RenderedPrompt:
    """Fill a template in one pass: what is filled in, as it is, is never looked into.

    `mark` is the delimiter of `make_fence`, `criterion` a criterion's text or the claim in question, `other` the second
    passage of a comparison.
    """
    values = {"query": query, "passage": passage, "fence": mark, "criterion": criterion, "other": other}
    turns = tuple(_FIELD.sub(lambda field: values[field[1]], turn) for turn in template.turns)
    return RenderedPrompt(template.system, turns)


@cache
def load_templates() -> Mapping[str, Template]:
    """The templates that come with the service and its plug-ins, by id."""
    folders = data_folders("relevance-judge", "templates")
    texts = [file.read_text("utf8") for folder in folders for file in folder.glob("*.toml")]
    found = [Template.model_validate(tomllib.loads(text)) for text in texts]
    return {one.id: one for one in sorted(found, key=lambda one: one.id)}


def get_template(name: str) -> Template:
    """A template by id, or by `id@digest` where the caller wants exactly that text; `NotFound` without it."""
    plain, _, digest = name.partition("@")
    known = load_templates()
    if plain not in known:
        raise NotFound(f"There is no template {plain!r}; known are {', '.join(known)}.", field="template")
    if digest and known[plain].digest != digest:
        detail = f"The template {plain} has the digest {known[plain].digest}, not {digest}."
        raise NotFound(detail, hint="It was changed since; leave the digest out to take it as it is.", field="template")
    return known[plain]
