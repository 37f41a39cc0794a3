"""Lists on the wire. A request's list has a largest length, and its first wrong item ends its validation."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

MAX_MESSAGES: Final = 10_000
"""Turns of a conversation, and parts of one."""

MAX_TOOLS: Final = 512
MAX_TEXTS: Final = 10_000
"""Texts of one request."""

MAX_TOKENS: Final = 200_000
"""Token ids of one text, and places in it; a longer one is sent as text."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class FailFast:
    """Mark of a list whose first wrong item ends its validation; pydantic's own can't be a part of a union."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = handler(source)
        schema["fail_fast"] = True
        marked: CoreSchema = schema
        return marked


Messages = Annotated[list[Item], FailFast(), Field(max_length=MAX_MESSAGES)]
Tools = Annotated[list[Item], FailFast(), Field(max_length=MAX_TOOLS)]
Texts = Annotated[list[Item], FailFast(), Field(max_length=MAX_TEXTS)]
Tokens = Annotated[list[Item], FailFast(), Field(max_length=MAX_TOKENS)]


class ItemList(BaseModel, Generic[Item]):
    """A list of answers, in OpenAI's form."""

    object: Literal["list"] = "list"
    data: list[Item]
