"""Small Servables for tests: they echo, fail, sleep and stream. Never discovered, for no scanned room is here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fovea.api.image import ImageBytes
from fovea.api.tensors import TensorSpec
from fovea.errors import FoveaError, InvalidOption, Malformed
from shared.registry import CallContext, Card, Limits, LoadContext, Paper, Servable

PAPER = Paper(title="None", venue="none", year=2026)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def card(name: str, task: Any = "echo", **facts: Any) -> Card:
    return Card(name=name, task=task, summary=f"The toy {name}.", paper=PAPER, licence="Apache-2.0", **facts)


class Text(BaseModel):
    text: str = Field("hello", max_length=100)
    times: int = Field(1, ge=1, le=5)
    sleep: float = Field(0.0, ge=0, le=600)


class Said(BaseModel):
    """The answer, and the number of others that it ran with."""

    text: str
    together: int


class PlusOne:
    name = "plus-one"
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches.append(len(feeds["x"]))
        return {"y": feeds["x"] + np.float32(1)}

    def close(self) -> None:
        """Nothing is held."""


def nap(seconds: float, run: CallContext) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        run.check()
        time.sleep(0.002)


class Echo(Servable[Text, Said]):
    """Says the text back; the texts `bad` and `bug` fail."""

    card: ClassVar[Card] = card("toy/echo", example={"text": "hello"}, limits=Limits(max_batch=8), weights="0" * 64)
    In, Out = Text, Said

    def __init__(self) -> None:
        self.engine = PlusOne()
        self.threads: set[str] = set()
        self.seen: list[str] = []
        self.closed = False

    @classmethod
    def load(cls, place: LoadContext) -> Echo:  # the contract
        return cls()

    def predict(self, batch: Sequence[Text], run: CallContext) -> list[Said | FoveaError]:
        self.threads.add(threading.current_thread().name)
        self.seen += [request.text for request in batch]
        nap(max(request.sleep for request in batch), run)
        return [self._say(request, len(batch)) for request in batch]

    def _say(self, request: Text, together: int) -> Said | FoveaError:
        if request.text == "bug":
            raise ZeroDivisionError("a secret path /etc/secret")
        if request.text == "bad":
            return InvalidOption("The text is bad.", hint="Send another.", field="text")
        return Said(text=request.text * request.times, together=together)

    def close(self) -> None:
        self.closed = True


class Broken(Echo):
    """Fails to load."""

    card: ClassVar[Card] = card("toy/broken")

    @classmethod
    def load(cls, place: LoadContext) -> Broken:  # the contract
        raise RuntimeError("a secret path /etc/secret")


class Story(Echo):
    """Streams the text, word by word."""

    card: ClassVar[Card] = card("toy/story", "plan")
    mode = "stream"

    async def stream(self, request: Text, run: CallContext) -> AsyncGenerator[BaseModel, None]:
        """One event per word; the word `bug` fails, `…` goes on for ever."""
        words = iter(lambda: "…", None) if request.text == "…" else request.text.split()
        for word in words:
            run.check()
            if word == "bug":
                raise ZeroDivisionError
            yield Said(text=word, together=1)
            await asyncio.sleep(0)  # an endless story must leave the loop a turn


class Long(Echo):
    """Runs as a job, one at a time, and tells how far it is."""

    card: ClassVar[Card] = card("toy/long", "probe")
    mode = "job"

    def predict(self, batch: Sequence[Text], run: CallContext) -> list[Said | FoveaError]:
        for step in range(5):
            run.check()
            run.progress(step / 5, f"step {step}")
            nap(batch[0].sleep / 5, run)
        return super().predict([request.model_copy(update={"sleep": 0}) for request in batch], run)


class Picture(BaseModel):
    model_config = ConfigDict(extra="ignore")

    image: ImageBytes
    threshold: float = Field(0.5, ge=0, le=1)
    classes: list[str] | None = None
    invert: bool = False
    label: str | None = None


class Seen(BaseModel):
    bytes: int
    threshold: float
    classes: list[str] | None
    invert: bool
    label: str | None


class Eye(Servable[Picture, Seen]):
    """Looks at pictures: says their size, and renders them back as PNG."""

    card: ClassVar[Card] = card("toy/eye", "segment", example={"threshold": 0.25})
    In, Out = Picture, Seen

    @classmethod
    def load(cls, place: LoadContext) -> Eye:  # the contract
        return cls()

    def predict(self, batch: Sequence[Picture], run: CallContext) -> list[Seen | FoveaError]:
        return [
            Seen(bytes=len(request.image), **request.model_dump(exclude={"image"}))
            if request.image.startswith(b"\x89PNG")
            else Malformed("The picture is not a PNG.", field="image")
            for request in batch
        ]

    def render(self, request: Picture, answer: Seen, media_type: str) -> bytes | None:
        return None if request.invert else request.image

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        return ("image/png",)

    def example(self) -> Picture:
        return Picture(image=PNG, **self.card.example)


TOYS: dict[str, Any] = {kind.card.name: kind for kind in (Echo, Story, Long, Eye)}
