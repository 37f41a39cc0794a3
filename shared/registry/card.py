"""Model card: frozen facts about one served model, shown in `/v1/models/{id}`, docs, console and CLI."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from fovea.api.model import Task
from shared.sparsity import SparsityClaim


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Paper(_Facts):
    """Where a system comes from."""

    title: str
    venue: str
    year: int
    url: str | None = None

    @classmethod
    def on_arxiv(cls, title: str, year: int, number: str, venue: str | None = None) -> Self:
        """Build the entry of a paper that arXiv holds under this number."""
        return cls(title=title, venue=venue or f"arXiv:{number}", year=year, url=f"https://arxiv.org/abs/{number}")


class Metric(_Facts):
    """One measured number against the paper's."""

    name: str = Field(description="For example `dice_at_half`.")
    ours: float | None = Field(description="Measured with the served weights, or null when not measured.")
    paper: float | None = Field(None, description="Published for the full-size model on the paper's data.")
    data: str = Field(description="Data of the measurement, and its amount.")
    note: str | None = None


class Limits(_Facts):
    """Limits of a model's input; None means that the platform's own limit is the only one."""

    max_batch: int | None = None
    min_side: int | None = Field(None, description="Shortest picture side, pixels.")
    max_side: int | None = Field(None, description="Longest picture side, pixels.")
    max_pixels: int | None = Field(None, description="Largest picture, pixels.")
    max_tokens: int | None = Field(None, description="Context window: prompt and answer together.")


class SamplingDefaults(_Facts):
    """How a language model draws tokens where a request does not say: the sampling fields of its generation config."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)


class Card(_Facts):
    """Facts of one served model.

    `variants` lists the forms that the system's spec names and `variant` the one served (the variants rule);
    `example` is a valid request without its picture fields, used by contract tests, docs and the console.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._/-]*$", description="Name of the model in requests.")
    task: Task
    summary: str = Field(description="One sentence: what it does for whom.")
    paper: Paper
    licence: str = Field(description="Licence of the served weights and code, and limits on use of upstream weights.")
    version: str = "1"
    variants: tuple[str, ...] = ()
    variant: str | None = None
    weights: str | None = Field(None, description="sha256 of the served weights file; null for random weights.")
    parameters: int | None = None
    metrics: tuple[Metric, ...] = ()
    limits: Limits = Limits()
    notes: tuple[str, ...] = Field((), description="Notes for users: departures, traps, 'not a medical device'.")
    sampling: SamplingDefaults | None = Field(None, description="Of language models: where a request names none.")
    sparsity: SparsityClaim | None = Field(None, description="Owed by every model that calls itself sparse.")
    example: dict[str, Any] = Field(default_factory=dict)
