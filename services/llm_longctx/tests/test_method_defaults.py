"""Methods are found by name, refuse what they can't take, and default to dense."""

import pytest
import torch

from services.llm_longctx.methods import AttentionMethod, method, methods
from services.llm_longctx.methods.core.hook_results import DecodePlan, Dense, Heads, Pages, RetentionPolicy
from shared.errors import InvalidOption
from shared.lm.builders import llama

CONFIG = llama(vocab=8, width=16, layers=3, heads=4, kv_heads=2, hidden=8, positions=32).config


def test_methods_are_found_by_scan():
    assert "dense" in methods()
    assert all(cls.name == name and cls.__doc__ for name, cls in methods().items())


@pytest.mark.parametrize(
    ("name", "knobs", "field"), [("denser", {}, "longctx.method"), ("dense", {"sink": 4}, "longctx.sink")]
)
def test_unknown_methods_and_knobs_are_refused(name, knobs, field):
    with pytest.raises(InvalidOption) as caught:
        method(name, **knobs)
    assert caught.value.field == field
    assert caught.value.hint or "dense" in caught.value.detail


def test_every_hook_defaults_to_dense():
    dense = method("dense")
    assert dense.head_plan(CONFIG, None) == Heads()
    assert dense.estimate(CONFIG, Heads(), 5, 3).entries == ((8, 8),) * 3
    assert dense.prefill_plan(None) == Dense()
    assert dense.decode_plan(None) == DecodePlan(Pages())
    assert dense.identity() == {}
    assert not any(dense.overrides(hook) for hook in ("prefill_plan", "after_prefill", "epilogue", "decode_plan"))


def test_a_method_that_frees_nothing_refuses_budgets_below_dense():
    dense = method("dense")
    assert dense.fit(3 * 2 * 8, CONFIG, None, 5, 3) is dense
    with pytest.raises(InvalidOption, match="frees no memory"):
        dense.fit(3 * 2 * 8 - 1, CONFIG, None, 5, 3)


def test_the_dense_oracle_is_causal_softmax():
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 7, 6), torch.randn(2, 7, 6), torch.randn(2, 7, 6)
    answer = method("dense").reference(q, k, v)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert answer.out.dtype == torch.float64
    assert torch.allclose(answer.out.float(), plain, atol=1e-6)
    assert answer.mask.sum() == 4 * 28


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
