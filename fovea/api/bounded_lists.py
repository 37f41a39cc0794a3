"""Lists of requests: each has a largest length, and the first wrong item ends its validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, GetCoreSchemaHandler
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
        """The schema of the list, with the mark."""
        schema: Any = handler(source)
        schema["fail_fast"] = True
        marked: CoreSchema = schema
        return marked


Messages = Annotated[list[Item], FailFast(), Field(max_length=MAX_MESSAGES)]
Tools = Annotated[list[Item], FailFast(), Field(max_length=MAX_TOOLS)]
Texts = Annotated[list[Item], FailFast(), Field(max_length=MAX_TEXTS)]
Tokens = Annotated[list[Item], FailFast(), Field(max_length=MAX_TOKENS)]
