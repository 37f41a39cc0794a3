"""Sweeps on the wire: one activation after another is patched, and what becomes of named next tokens."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from fovea.api.bounded_lists import Messages, Tokens
from fovea.api.interventions import Heads, Layers, Positions
from fovea.api.sampling import TokenId
from fovea.api.text import ChatMessage, Usage

SweptPrompt = (
    Annotated[str, Field(min_length=1)]
    | Annotated[Tokens[TokenId], Field(min_length=1)]
    | Annotated[Messages[ChatMessage], Field(min_length=1)]
)
"""A text, its token ids, or a conversation under the model's template."""


class SweepRequest(BaseModel, extra="forbid"):
    """A grid of patches of one prompt: layers × positions, or layers × heads."""

    model: str | None = Field(None, description="Name of the model; left out, the default one.")
    prompt: SweptPrompt = Field(description="The patched prompt: a text, its token ids, or messages.")
    source: SweptPrompt | None = Field(
        None, description="Source of activations, of as many tokens; left out, each cell is set to zero."
    )
    site: str = Field(
        "resid_pre", max_length=64, description="A site without its layer: resid_pre, z, …, or hook_resid_pre, …."
    )
    layers: Layers | None = Field(None, description="Rows of the grid; all if left out.")
    positions: Positions | None = Field(
        None, description="Columns of the grid; all if left out. With `by` head: where each head is patched."
    )
    by: Literal["position", "head"] = Field("position", description="Meaning of a column.")
    heads: Heads | None = Field(None, description="With `by` head: the columns; else the heads that are patched.")
    tokens: list[Annotated[str, Field(min_length=1, max_length=200)] | TokenId] = Field(
        min_length=1, max_length=20, description="Next tokens to look at: texts of one token each, or ids."
    )

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        for name in ("layers", "positions", "heads"):
            given = getattr(self, name) or []
            if len(set(given)) < len(given):
                raise ValueError(f"{name} names one twice")
        return self


class SweptToken(BaseModel):
    """A token of a prompt, or one that is looked at."""

    token: str
    id: int


class NextTokens(BaseModel):
    """Predictions of a run for the requested tokens, in their order."""

    logits: list[float]
    probabilities: list[float]
    logit_difference: float | None = Field(description="First minus second logit; null for one token.")


class Sweep(BaseModel):
    """The grid; its lists are [layers][columns], those of single tokens [layers][columns][tokens]."""

    object: Literal["sweep"] = "sweep"
    model: str
    site: str
    layers: list[int]
    positions: list[int]
    heads: list[int] | None
    by: Literal["position", "head"]
    prompt_tokens: list[str] = Field(description="Text of each token of the prompt.")
    tokens: list[SweptToken]
    prompt: NextTokens = Field(description="The prompt as it is.")
    source: NextTokens | None = Field(description="The source as it is.")
    logits: list[list[list[float]]]
    probabilities: list[list[list[float]]]
    logit_difference: list[list[float]] | None = Field(description="First minus second logit; null for one token.")
    recovered: list[list[float]] | None = Field(
        description="Share of the way from the prompt's logit difference (0) to the source's (1); null without both."
    )
    forward_tokens: int = Field(description="Tokens that were run through the model, all patches together.")
    usage: Usage = Field(description="The same, as quotas and the ledger count it.")
