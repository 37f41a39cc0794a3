"""Plug-ins that are wrong in one way each. Nothing of the product finds them; the contract suite refuses them all."""

from collections.abc import Callable, Sequence
from typing import Any

from fovea.errors import FoveaError
from shared.registry import CallContext

Change = Callable[[Any], Any]


def same(thing: Any) -> Any:
    return thing


def changed(**values: Any) -> Change:
    return lambda one: one.model_copy(update=values)


def each(change: Change) -> Change:
    return lambda answers: [one if isinstance(one, FoveaError) else change(one) for one in answers]


def wrong(name: str, base: Any, ask: Change = same, tell: Change = same, under: Change = same, **parts: Any) -> Any:
    """A class that does one thing otherwise than its base: changes what is asked, told or the run, or has own parts."""

    def predict(self: Any, batch: Sequence[Any], run: CallContext) -> Any:
        return tell(base.predict(self, ask(batch), under(run)))

    facts = {"card": base.card.model_copy(update={"name": name}), "__doc__": base.__doc__, "__module__": __name__}
    return type(base)(name, (base,), {"predict": predict, **facts, **parts})
