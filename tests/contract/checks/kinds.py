"""Which checks apply to which Servable, by what its class says: checks that don't apply are never collected."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

import pytest

from shared.registry import Servable
from shared.registry.discovery import shipped_weights
from shared.vision.servable import VisionServable

Kind = type[Servable[Any, Any]]
Check = TypeVar("Check", bound=Callable[..., None])

_CONDITIONS: dict[Callable[..., None], Callable[[Kind], object]] = {}


def applies_to(condition: Callable[[Kind], object]) -> Callable[[Check], Check]:
    """Say to which classes a check applies; without it, to all."""

    def note(check: Check) -> Check:
        _CONDITIONS[check] = condition
        return check

    return note


def case(subject: Any, check: Callable[..., None], *marks: pytest.MarkDecorator) -> Any:
    """One check on one subject, a name or a class, as a parameter of a test."""
    name = subject if isinstance(subject, str) else subject.__name__
    return pytest.param(subject, check, id=f"{name}-{check.__name__.removeprefix('check_')}", marks=marks)


def _each(*_case: Any) -> bool:
    return True


def cases(checks: Mapping[Any, Iterable[Callable[..., None]]], always: Callable[..., bool] = _each) -> list[Any]:
    """Subjects with their checks; `make test` leaves out those of which `always(subject, check)` is false."""
    return [
        case(subject, check, *[pytest.mark.release] * (not always(subject, check)))
        for subject, some in checks.items()
        for check in some
    ]


def cases_of(
    kinds: Mapping[str, Kind], checks: Iterable[Callable[..., None]], always: Callable[..., bool] = _each
) -> list[Any]:
    """Each class, by its name, with those of the checks that apply to it."""
    chosen = {name: [one for one in checks if _CONDITIONS.get(one, bool)(kind)] for name, kind in kinds.items()}
    return cases(chosen, always)


def has_engine(kind: Kind) -> bool:
    return issubclass(kind, VisionServable)


def is_plain_and_sync(kind: Kind) -> bool:
    return kind.mode == "sync" and not has_engine(kind)


def is_no_judge(kind: Kind) -> bool:
    """Whether its answers follow from its own weights: those of judges follow from another server's."""
    return kind.card.task != "judge"  # see checks.judges


def is_called_by_threads(kind: Kind) -> bool:
    return kind.mode == "stream" or kind.card.task == "judge"


def is_job(kind: Kind) -> bool:
    return kind.mode == "job"


def asks_model(kind: Kind) -> bool:
    """Whether a judge asks a language model."""
    return bool(getattr(kind, "asks_model", False))


def has_parts(kind: Kind) -> bool:
    return "include" in kind.In.model_fields


def holds_named_network(kind: Kind) -> bool:
    """Whether it holds networks itself, with weights that came with the packages and whose digests its Card names."""
    if has_engine(kind):  # behind an engine networks may be fused: what they compute is compared
        return False
    named = " ".join([kind.card.weights or "", *kind.card.notes])
    return kind.card.name in shipped_weights() or any(digest in named for digest in _digests())


def writes_with_named_weights(kind: Kind) -> bool:
    return kind.mode == "stream" and (kind.card.weights is not None or kind.card.name in shipped_weights())


@cache
def _digests() -> frozenset[str]:
    manifests = (file.with_suffix(".json").read_text("utf8") for file in shipped_weights().values())
    return frozenset(json.loads(manifest)["sha256"] for manifest in manifests)
