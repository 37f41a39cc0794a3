"""Warm-up of a model: its example is sent through once before the first caller's request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import BaseModel

from fovea.errors import FoveaError
from shared.registry import CallContext, Servable


def warm_up(servable: Servable[Any, Any]) -> None:
    """Send the example through once, so that the first caller does not pay for lazy set-up."""
    run, request = CallContext(), servable.example()
    if servable.mode == "sync":
        (answer,) = servable.predict([request], run)
        if isinstance(answer, FoveaError):
            raise answer
    elif servable.mode == "stream":
        asyncio.run(_read_first(servable.stream(request, run)))


async def _read_first(events: AsyncGenerator[BaseModel, None]) -> None:
    async with contextlib.aclosing(events):
        await anext(events, None)
