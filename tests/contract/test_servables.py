"""The contract suite of Servables: every check over every one that is found. A new model is tested by existing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared.registry import LoadContext, Servable, servables
from shared.registry.discovery import SERVICES
from tests.contract.checks.loaded import Loaded
from tests.contract.checks.servables import SERVABLE_CHECKS
from tests.contract.checks.text import TEXT_CHECKS
from tests.contract.language_model import endpoint

FOUND = {f"{service}/{name}": kind for service in SERVICES for name, kind in servables(service).items()}


def _params(kinds: dict[str, type[Servable[Any, Any]]]) -> list[Any]:
    """Language models and long work take more than a few seconds to load."""
    return [pytest.param(k, id=i, marks=() if k.mode == "sync" else (pytest.mark.slow,)) for i, k in kinds.items()]


@pytest.fixture(scope="module", params=_params(FOUND))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Each Servable once, loaded as a fresh machine would load it."""
    home = tmp_path_factory.mktemp("fovea")
    with endpoint() as judge_base_url:
        options = {
            "llm_model": "smollm2",
            "llm_dtype": "float32",
            "llm_weights": "fp32",
            "judge_base_url": judge_base_url,
        }
        place = LoadContext(cache=home / "cache", weights=home / "weights", threads=1, options=options)
        servable = request.param.load(place)
        yield Loaded(servable, place)
        servable.close()


def test_something_is_served():
    assert FOUND


CHECKS = [*SERVABLE_CHECKS, *TEXT_CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_servable(loaded: Loaded, check: Callable[[Loaded], None]) -> None:
    check(loaded)
