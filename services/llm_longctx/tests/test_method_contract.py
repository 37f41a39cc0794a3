"""Every attention method keeps the contract, which has teeth: it refuses each method that is broken on purpose."""

from itertools import product

import pytest

from services.llm_longctx.methods import methods
from services.llm_longctx.tests.broken_methods import BROKEN
from services.llm_longctx.tests.method_contract import CHECKS
from tests.harness.hypothesis_profiles import in_depth

STOOD_FOR = ("adakv", "criticalkv", "expected_attention", "flexprefill", "keydiff", "knorm", "kvzap", "lagkv",
             "pyramidkv", "razor", "tova", "triattention")  # fmt: skip
"""Methods whose knobs and surroundings are checked before a release: others of their kind stand for them."""

SURROUNDINGS = [f"check_{name}" for name in ("chunks", "fit", "knobs", "neighbours", "preemption", "prefixes")]
CASES = list(product(methods(), CHECKS))


@pytest.mark.parametrize(("name", "check"), in_depth(CASES, {*CASES} - {*product(STOOD_FOR, SURROUNDINGS)}))
def test_every_method_keeps_the_contract(name, check):
    CHECKS[check](methods()[name])


@pytest.mark.parametrize("says", BROKEN)
def test_a_broken_method_is_refused(says):
    check, cls = BROKEN[says]
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        CHECKS[f"check_{check}"](cls)
