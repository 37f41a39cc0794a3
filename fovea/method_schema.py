"""Attention methods of a served language model as data: what there is, and what its knobs are. Sends nothing."""

from __future__ import annotations

from typing import Any

import httpx2
from pydantic import BaseModel, TypeAdapter

from fovea.call import Call

__all__ = ["MethodCard", "methods"]


class MethodCard(BaseModel):
    """One method, as `/v1/longctx/methods` tells it."""

    name: str
    summary: str
    help: str = ""
    phases: list[str] = []
    needs_plan: bool = False
    knobs: dict[str, Any] = {}


def methods() -> Call[list[MethodCard]]:
    """Fetch all methods."""
    return Call("GET", "/v1/longctx/methods", _read)


def _read(response: httpx2.Response) -> list[MethodCard]:
    return TypeAdapter(list[MethodCard]).validate_json(response.content)
