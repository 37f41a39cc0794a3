"""A loaded Servable as checks see it: it answers requests, whatever its mode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel

from fovea.errors import FoveaError
from shared.registry import CallContext, Card, LoadContext, Servable
from tests.harness.streams import events_of


@dataclass(frozen=True)
class Loaded:
    """A loaded Servable and the LoadContext it was loaded on."""

    servable: Servable[Any, Any]
    place: LoadContext
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Results that several checks share."""

    @property
    def kind(self) -> type[Servable[Any, Any]]:
        return type(self.servable)

    @property
    def card(self) -> Card:
        return self.servable.card

    @property
    def pictures(self) -> list[str]:
        return pictures_of(self.kind)

    def outcomes(self, requests: Sequence[BaseModel], run: CallContext | None = None) -> list[Any]:
        """An answer or an error for each request, in order; of a model that streams, the list of its events."""
        run = run or CallContext()
        if self.servable.mode == "stream":
            streams = [self.servable.stream(request, run) for request in requests]
            return [_or_error(lambda stream=stream: list(events_of(stream))) for stream in streams]
        return list(self.servable.predict(list(requests), run))

    def answers(self, requests: Sequence[BaseModel], run: CallContext | None = None) -> list[Any]:
        """Answers in order; the first error among them is raised."""
        found = self.outcomes(requests, run)
        for answer in found:
            if isinstance(answer, FoveaError):
                raise answer
        return found

    def answer(self, request: BaseModel, run: CallContext | None = None) -> Any:
        return self.answers([request], run)[0]

    def rendered(self, request: BaseModel, media: str) -> bytes | None:
        """The answer to one request in a form other than JSON, as the platform asks for it."""
        run = CallContext()
        run.media = media
        return self.servable.render(request, self.answer(request, run), media)


class CancelsAfter(CallContext):
    """A run that somebody cancels once it was asked `checks` times whether to go on."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self._left = checks

    def check(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.cancel()
        super().check()


@cache
def pictures_of(kind: type[Servable[Any, Any]]) -> list[str]:
    properties = kind.In.model_json_schema()["properties"]
    return [name for name, prop in properties.items() if prop.get("contentMediaType", "").startswith("image/")]


def refused_by(work: Callable[[], Any]) -> FoveaError | None:
    """The error that work ends with, raised or returned, or None where it does not."""
    if isinstance(found := _or_error(work), list):
        found = next((one for one in found if isinstance(one, FoveaError)), None)
    return found if isinstance(found, FoveaError) else None


def _or_error(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except FoveaError as error:
        return error
