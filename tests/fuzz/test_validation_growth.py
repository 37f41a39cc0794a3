"""Inputs that were found, and the growth of validation."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from fovea.errors import FoveaError
from shared.asgi.json_bounds import MAX_PARTS, PartsCounter
from shared.registry.discovery import SERVICES
from shared.serving.http.request_parsing import ParsedRequest, build_requests
from shared.serving.replica import load_app
from shared.validation_errors import MAX_ERRORS, list_errors
from tests.fuzz.__main__ import FOUND, HARNESSES

SIZES = (1_000, 2_000, 4_000)
FLOOR_S = 0.1
"""Processor seconds below which a ratio says nothing on a busy machine."""

MOST_S = 2.0
"""For the widest body that is let through, on a busy machine."""

WRONG: dict[str, Callable[[int], Any]] = {
    "lists": lambda n: [[] for _ in range(n)], "numbers": lambda n: [-1.5] * n,
    "texts": lambda n: ["\ud800" if i == n - 1 else "x" for i in range(n)],
    "objects": lambda n: [{} for _ in range(n)], "fields": lambda n: {f"k{i}": i for i in range(n)},
    "mixed": lambda n: [("x", 1, None, [1], {"type": "text"})[i % 5] for i in range(n)],
    "deep": lambda n: [[[[1] * 10] * 10] * max(n // 100, 1)], "text": lambda n: "a" * n,
}  # fmt: skip
"""Values of n parts that some field may not have."""


def list_makers(model: type[BaseModel]) -> Iterator[tuple[str, Callable[[int], dict[str, Any]]]]:
    """Makers of bodies of about n parts: each kind of wrong value in each field, and fields that are not known."""
    for name in model.model_fields:
        for kind, make in WRONG.items():
            yield f"{name} {kind}", lambda n, name=name, make=make: {name: make(n)}
    yield "unknown fields", lambda n: {f"unknown{i}": i for i in range(n)}


def validate(model: type[BaseModel], body: dict[str, Any]) -> float:
    """Processor seconds of a validation and of listing what is wrong."""
    begun = time.process_time()
    try:
        model.model_validate(body)
    except ValidationError as error:
        listed = len(list_errors(error))
    except FoveaError:
        listed = 1  # a validator of ours refuses by itself
    else:
        listed = 0
    assert listed <= MAX_ERRORS
    return time.process_time() - begun


def walk(routes: Any) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (inner := getattr(route, "original_router", None)) is not None:
            yield from walk(inner.routes)


@pytest.fixture(scope="module")
def models():
    """Name → request model of the typed routes, and of every model that a task route serves."""
    found: set[Any] = set()
    for app in map(load_app, SERVICES):
        host = app.state.host
        found |= {route.body_field.field_info.annotation for route in walk(app.routes) if route.body_field}
        found |= {host.servable_type(name).In for name in host.names()}
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}


def test_validation_grows_no_faster_than_the_body(models):
    for name, model in models.items():
        for what, make in list_makers(model):
            if validate(model, make(SIZES[-1])) > FLOOR_S:  # once more, all: a collection of garbage is not growth
                first, second, third = (min(validate(model, body) for _ in range(2)) for body in map(make, SIZES))
                told = f"{name} {what}: {first:.3f}, {second:.3f}, {third:.3f} s"
                assert third <= max(6 * first, 3 * second, FLOOR_S), told


@pytest.mark.release
def test_the_widest_body_that_is_let_through_is_validated_in_bounded_time(models):
    for name, model in models.items():
        widest = max(model.model_fields, key=lambda field: "list" in str(model.model_fields[field].annotation))
        for body in ({widest: [[]] * (MAX_PARTS // 2 - 1)}, {f"k{i}": 0 for i in range(MAX_PARTS - 2)}):
            PartsCounter("/v1/x", "application/json").feed(json.dumps(body).encode())
            assert validate(model, body) < MOST_S, name


def test_every_service_has_request_models_and_a_route_refuses_many_fields_by_the_first(models):
    (name,) = [name for name in models if name.endswith("SegmentIn")][:1] or [next(iter(models))]
    begun = time.process_time()
    with pytest.raises(FoveaError, match="no option"):
        build_requests(ParsedRequest(options={f"k{i}": 0 for i in range(MAX_PARTS)}), models[name], 10)
    assert time.process_time() - begun < MOST_S
    services = {name.split(".")[1] for name in models if name.startswith("services.")}
    assert {"interpretability", "relevance_judge"} <= services
    assert "fovea.api.text.ChatRequest" in models
    assert len(models) > 20


# Starlette leaves the file of a part that breaks off to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", HARNESSES)
def test_seeds_and_found_inputs_end_well(name):
    harness = HARNESSES[name]
    for data in (*harness.seeds, b"", *[file.read_bytes() for file in sorted(FOUND.glob(f"{name}-*"))]):
        harness.check(data)
        harness.check(data[: len(data) // 2])
