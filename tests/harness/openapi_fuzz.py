"""schemathesis over routes: requests that an OpenAPI document allows, and what may be wrong with the answers."""

from collections.abc import Callable, Sequence
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from tests.harness.hypothesis_profiles import fewer


def list_operations(app: FastAPI, *prefixes: str) -> dict[str, Any]:
    """Operations of an app's document whose path begins like that, by method and path."""
    found = [result.ok() for result in schemathesis.openapi.from_dict(app.openapi()).get_all_operations()]
    return {each.label: each for each in found if each.path.startswith(prefixes)}


def fuzz(
    operation: Any,
    url: str,
    share: int,
    checks: Sequence[Callable[..., Any]] = (not_a_server_error,),
    change: Callable[[Any], object] = lambda _body: None,
) -> None:
    """Send one in `share` of the profile's examples to an operation; `change` gets the body of each, if it is one."""

    @settings(max_examples=fewer(share), suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        if isinstance(case.body, dict):
            change(case.body)
        case.call_and_validate(base_url=url, checks=list(checks), timeout=60)

    send()
