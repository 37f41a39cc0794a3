"""The contract of attention methods: what every one must do, as checks that run over plug-ins and over broken ones.

A check takes the class and asserts; `CHECKS` has them all. It runs the method under its `contract_knobs` on a tiny
random decoder and knows no method by name.
"""

from collections.abc import Callable

import pytest

from services.llm_longctx.methods import AttentionMethod
from services.llm_longctx.tests.method_contract.configuration import check_facts, check_knobs, check_plan
from services.llm_longctx.tests.method_contract.maths import (
    check_effect,
    check_engine,
    check_reference,
    check_retention,
)
from services.llm_longctx.tests.method_contract.memory import check_estimate, check_fit
from services.llm_longctx.tests.method_contract.surroundings import (
    check_chunks,
    check_neighbours,
    check_preemption,
    check_prefixes,
    check_repeats,
)

__all__ = ["CHECKS", "refusals"]

CHECKS: tuple[Callable[[type[AttentionMethod]], None], ...] = (
    check_facts,
    check_reference,
    check_engine,
    check_retention,
    check_effect,
    check_estimate,
    check_fit,
    check_chunks,
    check_neighbours,
    check_repeats,
    check_preemption,
    check_prefixes,
    check_knobs,
    check_plan,
)


def refusals(cls: type[AttentionMethod]) -> dict[str, str]:
    """Checks that refuse a method, by name, with their reasons."""
    found = {}
    for check in CHECKS:
        try:
            check(cls)
        except Exception as error:  # noqa: BLE001  # a broken method may fail in any way
            found[check.__name__] = str(error).partition("\n")[0]
        except pytest.fail.Exception as error:
            found[check.__name__] = str(error)
    return found
