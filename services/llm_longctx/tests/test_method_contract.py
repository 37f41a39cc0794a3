"""Every attention method keeps the contract, which has teeth: it refuses each method that is broken on purpose."""

import pytest

from services.llm_longctx.methods import methods
from services.llm_longctx.tests.broken_methods import BROKEN
from services.llm_longctx.tests.method_contract import CHECKS


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", methods())
def test_every_method_keeps_the_contract(name, check):
    CHECKS[check](methods()[name])


@pytest.mark.parametrize("says", BROKEN)
def test_a_broken_method_is_refused(says):
    check, cls = BROKEN[says]
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        CHECKS[f"check_{check}"](cls)
