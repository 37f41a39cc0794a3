"""Every attention method that the room holds keeps the contract; a new file joins by being there."""

import pytest

from services.llm_longctx.methods import methods
from services.llm_longctx.tests.method_contract import CHECKS


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", methods())
def test_every_method_keeps_the_contract(name, check):
    CHECKS[check](methods()[name])
