"""State of models between requests, on the wire: sessions with a memory, and documents that are asked about."""

from typing import Literal

from pydantic import BaseModel, Field

from fovea.api.bounded_lists import ItemList
from fovea.api.longctx import LongctxOptions


class SessionRequest(BaseModel, extra="forbid"):
    """A session to be opened."""

    model: str | None = Field(None, description="A model with a memory; left out, the first one.")


class RollbackRequest(BaseModel, extra="forbid"):
    """A version to go back to."""

    version: int = Field(ge=0, lt=2**53, description="One of the versions that are kept.")


class Session(BaseModel):
    """A session: what a model remembers of a stream, in constant size."""

    id: str
    object: Literal["session"] = "session"
    model: str
    version: int = Field(description="Writes so far.")
    versions: list[int] = Field(description="Versions that can be gone back to.")
    tokens: int = Field(description="Tokens that it has read.")
    state_bytes: int = Field(description="Bytes of what it remembers.")
    created: int
    updated: int


class SessionList(ItemList[Session]):
    """A page of sessions, newest first."""

    has_more: bool = Field(description="Whether there are older ones: ask again with `after` set to the last id.")


class LearntToken(BaseModel):
    """Effect of one token on the memory; means over layers and heads."""

    token: int
    text: str
    loss: float = Field(description="The memory's error before it learned: the surprise.")
    rate: float = Field(description="How strongly it learned, theta.")
    forgotten: float = Field(description="Share of what it knew that it let go, alpha.")


class SurpriseTrace(BaseModel):
    """Tokens that the request behind a version memorised, and those that it forgot."""

    id: str
    object: Literal["session.surprise"] = "session.surprise"
    version: int
    mean: float | None = Field(description="Mean surprise; null where nothing was read.")
    tokens: list[LearntToken]


class Deleted(BaseModel):
    """Something is gone."""

    id: str
    object: str
    deleted: bool = True


class DocumentRequest(BaseModel, extra="forbid"):
    """A text to be read once and asked about often."""

    model: str | None = Field(None, description="A model that cites; left out, the first one.")
    text: str = Field(min_length=1, description="What it says.")
    name: str | None = Field(None, max_length=200, description="For people.")
    longctx: LongctxOptions | None = Field(None, description="How it is read: blocks, selection, offload, capacity.")


class DocumentInfo(BaseModel):
    """A document that was read. Its id follows from model, text and how it was read."""

    id: str
    object: Literal["document"] = "document"
    model: str
    name: str | None
    tokens: int
    blocks: int = Field(description="Full blocks that it fills.")
    created: int
    longctx: dict[str, int | str | bool | None]
    cached_tokens: int | None = Field(None, description="When it is stored: tokens that had been read before.")
    shared: bool | None = Field(
        None, description="When it is stored: whether other replicas can go on from its blocks, or must read it again."
    )


class DocumentText(DocumentInfo):
    """The same, and what it says."""

    text: str


class DocumentList(ItemList[DocumentInfo]):
    """Documents, newest first."""
