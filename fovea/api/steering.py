"""Steering vectors on the wire: what one is computed from, and what is known of a stored one."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from fovea.api.bounded_lists import FailFast, ItemList, Messages
from fovea.api.interventions import Layers
from fovea.api.text import ChatMessage

VECTOR_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Pattern of names."""

MAX_PROMPTS = 256
"""Prompts of each side."""

Prompt = Annotated[str, StringConstraints(min_length=1)] | Annotated[Messages[ChatMessage], Field(min_length=1)]
Prompts = Annotated[list[Prompt], FailFast(), Field(min_length=1, max_length=MAX_PROMPTS)]


class SteeringVectorRequest(BaseModel, extra="forbid"):
    """Contrasting prompts, whose mean difference becomes the next version of a vector."""

    name: str = Field(pattern=VECTOR_NAME, description="Its name; the version is counted up.")
    model: str | None = Field(None, description="Name of the model; left out, the default one.")
    positive: Prompts = Field(description="Texts or conversations that show what is wanted.")
    negative: Prompts = Field(description="Texts or conversations that show the opposite.")
    layers: Layers | None = Field(None, description="Whose residual stream; left out, the middle third.")
    tokens: Literal["last", "mean"] = Field("last", description="Activation of the last token, or the mean of all.")


class SteeringLayer(BaseModel):
    """A vector's direction in one layer."""

    layer: int
    norm: float = Field(description="Length of the vector.")
    activation_norm: float = Field(
        description="Median length of the activations of the prompts' tokens here, the first of each left out."
    )
    separation: float = Field(
        description="Share of pairs of one positive and one negative prompt that lie the right way round along the "
        "vector (AUC) on the prompts that it was made from; .5 is chance."
    )
    values: list[float] | None = Field(None, description="The vector, with `values=true`.")


class SideEffect(BaseModel):
    """Effect of a vector on text that has nothing to do with it."""

    strength: float
    perplexity: float = Field(description="Of a paragraph of plain English prose, with the vector in its `layer`.")


class SteeringVector(BaseModel):
    """A stored vector: `mean(positive) - mean(negative)` of `resid_post`, layer by layer."""

    id: str = Field(description="`name@version`, as an intervention names it.")
    object: Literal["steering_vector"] = "steering_vector"
    name: str
    version: int
    model: str
    weights: str = Field(description="Fingerprint of the weights that it belongs to.")
    width: int
    created: datetime
    tokens: Literal["last", "mean"]
    positive: int = Field(description="Prompts that show what is wanted.")
    negative: int = Field(description="Prompts that show the opposite.")
    layers: list[SteeringLayer]
    layer: int | None = Field(
        None, description="Where it is added by default: the best separation, then the longest relative to activations."
    )
    strength: float | None = Field(
        None, description="Its default strength: the largest tried at which perplexity rises by half at most."
    )
    side_effects: list[SideEffect] = Field([], description="Perplexity by strength; 0 is the model as it is.")


class SteeringVectorList(ItemList[SteeringVector]):
    """Stored vectors, newest first."""


class SteeringVectorDeleted(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["steering_vector"] = "steering_vector"
    deleted: bool = True
    versions: list[int] = Field(description="The versions that are gone.")
