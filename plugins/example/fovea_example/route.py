"""A route of the service detection that needs no model."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

router = APIRouter(prefix="/v1/example", tags=["example"])


class LongestWord(BaseModel):
    """The longest word of a text, and its length."""

    word: str
    length: int


@router.get("/longest-word")
async def longest_word(text: Annotated[str, Query(min_length=1, max_length=1000, pattern=r"\S")]) -> LongestWord:
    """Find the longest word of a text; of several, the first."""
    word = max(text.split(), key=len)
    return LongestWord(word=word, length=len(word))
