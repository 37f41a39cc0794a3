"""Every attention method keeps the contract, which has teeth: it accepts sound toys and refuses each broken twin."""

import pytest

from services.llm_longctx.methods import methods
from services.llm_longctx.tests.method_contract import CHECKS
from services.llm_longctx.tests.mutants_methods import MUTANTS, SOUND


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", methods())
def test_every_method_keeps_the_contract(name, check):
    CHECKS[check](methods()[name])


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("cls", SOUND)
def test_sound_toys_keep_the_contract(cls, check):
    CHECKS[check](cls)


@pytest.mark.parametrize("says", MUTANTS)
def test_a_broken_toy_is_refused(says):
    check, cls = MUTANTS[says]
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        CHECKS[f"check_{check}"](cls)


def test_no_toy_is_served():
    assert not {cls.name for cls in SOUND} & set(methods())
