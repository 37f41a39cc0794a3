"""The contract suite of Servables: every check on a toy of each family; a few on real models, all before a release."""

from collections.abc import Callable

import pytest

from services.interpretability.core.experiment import Experiment
from services.llm_longctx.serving.decoder_model import DecoderModel
from shared.registry import LoadContext, servables
from shared.registry.discovery import SERVICES
from shared.vision.servable import VisionServable
from tests.contract.checks import servables as contract
from tests.contract.checks.judges import Oracle
from tests.contract.checks.kinds import cases_of
from tests.contract.checks.loaded import Loaded
from tests.contract.checks.text import TEXT_CHECKS
from tests.contract.toys import TOYS, write_toys
from tests.harness.language_model import share_language_model

Check = Callable[[Loaded], None]

FOUND = {f"{service}/{name}": kind for service in SERVICES for name, kind in servables(service).items()}

SMOLLM2 = "llm-longctx/smollm2-135m-instruct"

SMALL = (
    "detection/fovea-planner", "interpretability/logit-lens", "llm-longctx/fovea-titans-mag",
    "relevance-judge/log-odds",
)  # fmt: skip
"""Real models that are as small as toys: each stands for its family."""

CHECKS = (*contract.SERVABLE_CHECKS, *TEXT_CHECKS)


def _runs_always(name: str, check: Check) -> bool:
    """Whether a real model has a check in each run: families' toys and `test_experiments.py` have the others."""
    kind = FOUND[name]
    if check is contract.check_batch_equals_its_singles:
        return name in SMALL or not issubclass(kind, Experiment | VisionServable | DecoderModel)
    if check is contract.check_example_is_answered_validly and issubclass(kind, Experiment):
        return name in SMALL
    is_long = check is contract.check_every_option_matters and kind.mode == "stream"
    return check in contract.SMOKE_CHECKS or (name in SMALL and not is_long)


def _is_of_each_family(name: str, check: Check) -> bool:
    """Whether a toy has a check in each run: the first of its family has all, another what real models have."""
    return "-other-" not in name or check in contract.SMOKE_CHECKS


@pytest.fixture(scope="module")
def judge_base_url():
    server = Oracle().serve()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    write_toys(tmp_path_factory.mktemp("toys"))
    return TOYS


@pytest.fixture(scope="module")
def load(request, tmp_path_factory, judge_base_url):
    """Loads a Servable as on a fresh machine; cases are grouped by Servable, so it is kept until another is wanted."""
    options = {"llm_model": "smollm2", "llm_dtype": "float32", "llm_weights": "fp32", "judge_base_url": judge_base_url}
    home, kept = tmp_path_factory.mktemp("fovea"), dict[str, Loaded]()

    def clear() -> None:
        while kept:
            kept.popitem()[1].servable.close()

    def get(name: str) -> Loaded:
        if name not in kept:
            clear()
            if name == SMOLLM2:
                share_language_model(home / name / "cache")
            own = home / name
            place = LoadContext(cache=own / "cache", weights=own / "weights", threads=1, options=options)
            kind = request.getfixturevalue("toys")[name] if name in TOYS else FOUND[name]
            kept[name] = Loaded(kind.load(place), place)
        return kept[name]

    yield get
    clear()


@pytest.mark.parametrize(
    ("name", "check"), [*cases_of(TOYS, CHECKS, _is_of_each_family), *cases_of(FOUND, CHECKS, _runs_always)]
)
def test_servable(name, check, load):
    check(load(name))
