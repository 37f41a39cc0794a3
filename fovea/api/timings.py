"""Where the time of an answer went."""

from __future__ import annotations

from pydantic import BaseModel


class Times(BaseModel):
    """Milliseconds per stage of a picture; `infer` is that of the whole micro-batch."""

    decode: float = 0.0
    preprocess: float = 0.0
    infer: float = 0.0
    post: float = 0.0
