"""Methods are found by name, refuse what they can't take, and default to dense."""

import pytest
import torch

from services.llm_longctx.methods import AttentionMethod, method
from services.llm_longctx.methods.core.hook_results import RetentionPolicy
from shared.errors import InvalidOption
from shared.lm.builders import llama

CONFIG = llama(vocab=8, width=16, layers=3, heads=4, kv_heads=2, hidden=8, positions=32).config


@pytest.mark.parametrize(
    ("name", "knobs", "field"), [("denser", {}, "longctx.method"), ("dense", {"sink": 4}, "longctx.sink")]
)
def test_unknown_methods_and_knobs_are_refused(name, knobs, field):
    with pytest.raises(InvalidOption) as caught:
        method(name, **knobs)
    assert caught.value.field == field
    assert caught.value.hint or "dense" in caught.value.detail


def test_a_method_that_frees_nothing_refuses_budgets_below_dense():
    dense = method("dense")
    assert dense.fit(3 * 2 * 8, CONFIG, None, 5, 3) is dense
    with pytest.raises(InvalidOption, match="frees no memory"):
        dense.fit(3 * 2 * 8 - 1, CONFIG, None, 5, 3)


def test_changing_knobs_validates_them():
    class Toy(AttentionMethod):
        """A toy."""

        name = "toy"
        budget: int = 3

    assert Toy().with_knobs(budget=5).budget == 5
    with pytest.raises(ValueError, match="spare"):
        Toy().with_knobs(spare=1)


@pytest.mark.parametrize(("n", "kept"), [(3, None), (5, None), (9, [0, 1, 6, 7, 8])])
def test_keeping_the_ends_cuts_only_what_is_longer(n, kept):
    order = RetentionPolicy.ends(torch.arange(n), 2, 3, slide=True)
    assert (None if order.positions is None else order.positions.tolist()) == kept
    assert (order.sink, order.slide) == (2, 3)
