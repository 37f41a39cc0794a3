"""The contract suite of Servables: every check on a toy of each family, and a few of them on every model there is.

A new model is tested by existing. The whole matrix runs on real models, too, before a release.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.registry import LoadContext, Servable, servables
from shared.registry.discovery import SERVICES
from tests.contract.checks.kinds import applicable, case, cases
from tests.contract.checks.loaded import Loaded
from tests.contract.checks.servables import SERVABLE_CHECKS, SMOKE_CHECKS
from tests.contract.checks.text import TEXT_CHECKS
from tests.contract.language_model import endpoint
from tests.contract.toys import TOYS, write_toys
from tests.harness.language_model import share_language_model

Kind = type[Servable[Any, Any]]
Check = Callable[[Loaded], None]

FOUND = {f"{service}/{name}": kind for service in SERVICES for name, kind in servables(service).items()}

SMOLLM2 = "llm-longctx/smollm2-135m-instruct"

SMALL = ("detection/fovea-planner", "llm-longctx/fovea-titans-mag", "relevance-judge/log-odds")
"""Real models that are as small as toys: each stands for its family."""

CHECKS = (*SERVABLE_CHECKS, *TEXT_CHECKS)


def _real_cases() -> list[Any]:
    return [
        case(name, check, *[] if check in SMOKE_CHECKS or name in SMALL else [pytest.mark.release])
        for name, kind in FOUND.items()
        for check in applicable(CHECKS, kind)
    ]


class Shelf:
    """Loads a Servable as a fresh machine would, and keeps it until another one is asked for."""

    def __init__(self, home: Path, judge_base_url: str) -> None:
        self._home, self._url = home, judge_base_url
        self._name, self._loaded = "", None

    def take(self, name: str, kind: Kind) -> Loaded:
        """The loaded Servable; cases are grouped by Servable, so that each is loaded once."""
        if self._name != name or self._loaded is None:
            self.clear()
            home = self._home / name
            if name == SMOLLM2:
                share_language_model(home / "cache")
            options = {"llm_model": "smollm2", "llm_dtype": "float32", "llm_weights": "fp32"}
            options["judge_base_url"] = self._url
            place = LoadContext(cache=home / "cache", weights=home / "weights", threads=1, options=options)
            self._name, self._loaded = name, Loaded(kind.load(place), place)
        return self._loaded

    def clear(self) -> None:
        if self._loaded is not None:
            self._loaded.servable.close()
        self._loaded = None


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    with endpoint() as url:
        made = Shelf(tmp_path_factory.mktemp("fovea"), url)
        yield made
        made.clear()


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    write_toys(folder)
    return folder


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(("name", "check"), cases({name: applicable(CHECKS, kind) for name, kind in TOYS.items()}))
def test_family(name, check, shelf):
    check(shelf.take(name, TOYS[name]))


@pytest.mark.parametrize(("name", "check"), _real_cases())
def test_servable(name, check, shelf):
    check(shelf.take(name, FOUND[name]))
