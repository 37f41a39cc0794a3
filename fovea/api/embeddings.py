"""Embeddings on the wire, in OpenAI's form."""

from typing import Literal

from pydantic import BaseModel, Field

from fovea.api.bounded_lists import ItemList, Texts, Tokens
from fovea.api.sampling import NullIsAbsent, TokenId

MAX_INPUTS = 2048
"""Texts in one request."""


class EmbeddingsRequest(NullIsAbsent):
    """Texts to embed."""

    model: str | None = Field(None, description="An embedding model, or a language model whose states are averaged.")
    input: str | Texts[str] | Tokens[TokenId] | Texts[Tokens[TokenId]] = Field(
        description=f"A text or its token ids, or up to {MAX_INPUTS} of them."
    )
    encoding_format: Literal["float", "base64"] = Field("float", description="`base64`: little-endian float32.")
    dimensions: int | None = Field(None, ge=1, description="Keep so many first numbers, scaled to length 1 again.")
    truncate: bool = Field(False, description="Ours: cut what is too long instead of refusing it.")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="Keep the first so many tokens of each text; -1: as many as the model reads."
    )
    user: str | None = Field(None, description="Taken and ignored.")

    def list_inputs(self) -> list[str | list[int]]:
        """The texts, each as text or as token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and isinstance(self.input[0], int):
            return [[int(token) for token in self.input if isinstance(token, int)]]
        return [one if isinstance(one, str) else list(one) for one in self.input if not isinstance(one, int)]


class Embedding(BaseModel):
    """One text's vector, of length 1."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(ItemList[Embedding]):
    """The vectors, in the order of the texts."""

    model: str
    usage: EmbeddingUsage
    warnings: list[str] | None = Field(None, description="Ours: fields that were ignored, a sentence each.")
