"""Taps of a decoder: properties on any model, numbers of an independent implementation, and names of hooks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fovea.errors import InvalidOption, TooLarge
from shared.lm.activation_names import SITES, UNLAYERED_SITES, InvalidTap
from shared.lm.builders import llama
from shared.lm.decoder import Decoder
from shared.lm.hook_names import from_hook_name, to_hook_name, to_module_path
from shared.lm.rope import frequencies
from shared.lm.taps import Attend, Replace, Scale, Uniform, sweep, trace
from shared.lm.tests.test_decoder import ids, ours, theirs

ALL_SITES = [site if site in UNLAYERED_SITES else f"{site}.1" for site in SITES]
T = 12


class Operations(TorchDispatchMode):
    """Lists the tensor operations that are dispatched inside its block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.seen.append(str(op))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("site", ALL_SITES)
def test_a_site_has_the_stated_shape_and_replaced_by_its_own_capture_changes_nothing(golden, site):
    c = golden.model.config
    sizes = {"B": 6, "T": T, "S": T, "H": c.heads, "G": c.kv_heads, "d": c.head_dim, "D": c.width}
    plain = trace(golden.model, golden.clean, capture=[site])
    assert plain[site].shape == tuple(sizes[axis] for axis in SITES[site.partition(".")[0]])
    again = trace(golden.model, golden.clean, edits=[Replace(site, plain[site])])
    torch.testing.assert_close(again.logits, plain.logits, atol=1e-5, rtol=0)


FUSED = [site for site in ALL_SITES if site.partition(".")[0] not in {"scores", "pattern"}]


@given(position=st.integers(1, T - 1), site=st.sampled_from(FUSED))
def test_an_edit_moves_no_logit_before_its_position(llama_golden, position, site):
    plain = trace(llama_golden.model, llama_golden.clean).logits
    other = Replace(site, torch.linspace(-1, 1, 32 if "D" in SITES[site.partition(".")[0]] else 8), positions=position)
    edited = trace(llama_golden.model, llama_golden.clean, edits=[other]).logits
    torch.testing.assert_close(edited[:, :position], plain[:, :position], atol=1e-5, rtol=0)
    assert not torch.allclose(edited[:, position], plain[:, position], atol=1e-5)


def test_uniform_over_visible_keys_leaves_left_padding_out(golden):
    pad = torch.tensor([0, 1, 2, 3, 4, 5])
    t = trace(golden.model, golden.clean, capture=["pattern.0"], edits=[Uniform(0, 1)], pad=pad)
    for row, left in enumerate(pad.tolist()):
        seen = t["pattern.0"][row, 1]
        assert seen[-1, :left].eq(0).all()
        torch.testing.assert_close(seen[-1, left:], torch.full((T - left,), 1 / (T - left)))
        assert seen[:left].eq(0).all(), "a padded query sees nothing"


EDITS = [Uniform(0, 1, positions=[3, 9]), Attend(1, 2, 8, [0, 4], [0.5, 1.5]), Scale("mlp_out.1", 0.5, positions=[10])]


def test_token_by_token_equals_one_pass_with_edits(golden):
    whole = trace(golden.model, golden.clean, edits=EDITS).logits
    cache = golden.model.new_cache(6)
    # An edit of a generation is given at every step and acts when its token comes.
    steps = [trace(golden.model, golden.clean[:, t : t + 1], edits=EDITS, cache=cache).logits for t in range(T)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=0)


def test_only_the_asked_query_rows_are_kept(golden):
    whole = trace(golden.model, golden.clean, capture=["pattern.1", "scores.2"])
    for kernel in (None, "eager"):
        asked = {"capture": ["pattern.1", "scores.2"], "queries": [2, -1], "kernel": kernel}
        some = trace(golden.model, golden.clean, **asked, max_cells=10**4)
        for name in ("pattern.1", "scores.2"):
            torch.testing.assert_close(some[name], whole[name][:, :, [2, T - 1]], atol=1e-4, rtol=0)
        torch.testing.assert_close(some.logits, whole.logits, atol=1e-4, rtol=0)


def test_rows_of_a_sweep_equal_one_forward_each(golden):
    donor = trace(golden.model, golden.corrupt, capture=["z.1", "q.0"])
    variants = [
        [Replace("z.1", donor["z.1"], heads=2)],
        [Replace("q.0", donor["q.0"][:1], positions=4, rows=[1, 3]), Uniform(1, 0)],
        [],
        [Attend(1, 1, 5, [1, 2], [1.0, 2.0], rows=2)],
    ]
    for batch in (None, 1, 3):
        swept = list(sweep(golden.model, golden.clean, variants, batch=batch, capture=["z.2"]))
        for variant, seen in zip(variants, swept, strict=True):
            alone = trace(golden.model, golden.clean, edits=variant, capture=["z.2"])
            torch.testing.assert_close(seen.logits, alone.logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(seen["z.2"], alone["z.2"], atol=1e-5, rtol=0)


def test_edits_of_a_site_apply_in_order_before_its_capture(golden):
    edits = [Replace("z.0", torch.ones(())), Scale("z.0", 3.0, heads=1)]
    z = trace(golden.model, golden.clean, edits=edits, capture=["z.0"])["z.0"]
    assert z[:, :, 1].eq(3).all()
    assert z[:, :, [0, 2, 3]].eq(1).all()
    z = trace(golden.model, golden.clean, edits=edits[::-1], capture=["z.0"])["z.0"]
    assert z.eq(1).all()


def test_threads_with_different_edits_do_not_see_each_other(llama_golden):
    model, ids = llama_golden.model, llama_golden.clean
    edits = [[Scale(f"z.{i % 3}", 0.0, heads=i % 4)] for i in range(8)]
    alone = [trace(model, ids, edits=e).logits for e in edits]
    plain = trace(model, ids).logits
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: trace(model, ids, edits=edits[i % 8]).logits, range(64)))
    for i, logits in enumerate(together):
        assert torch.equal(logits, alone[i % 8])
    assert torch.equal(trace(model, ids).logits, plain)


def test_captures_belong_to_the_caller_and_are_widened(golden):
    t = trace(golden.model, golden.clean, capture=["resid_pre.1", "embed"])
    again = trace(golden.model, golden.clean).logits
    t["resid_pre.1"].zero_()
    t["embed"].zero_()
    assert not t["embed"].requires_grad
    assert torch.equal(trace(golden.model, golden.clean).logits, again)
    model = llama(vocab=16, width=8, layers=2, heads=2, kv_heads=1, hidden=8, positions=16, tied=True).half()
    t = trace(model, torch.tensor([[1, 2, 3]]), capture=["resid_post.1", "pattern.0"])
    assert t["resid_post.1"].dtype == t["pattern.0"].dtype == torch.float32


def test_without_captures_no_operation_is_added(llama_golden):
    model, ids = llama_golden.model, llama_golden.clean
    frequencies(model.config, ids.device)  # computed once per model
    with torch.no_grad(), Operations() as untapped:
        known = model(ids)
    with Operations() as traced:
        logits = trace(model, ids).logits
    assert torch.equal(logits, known)
    assert traced.seen == untapped.seen
    with Operations() as captured:
        trace(model, ids, capture=["z.1"])
    assert len(captured.seen) <= len(traced.seen) + 2, "detach and one copy"


@pytest.mark.parametrize(("what", "says"), [
    ({"capture": ["zz.1"]}, "zz.1.*sites are"), ({"capture": ["z"]}, "'z'.*sites are"),
    ({"capture": ["final.0"]}, "final.0"), ({"capture": ["z.3"]}, r"layer 3.*0…2"),
    ({"capture": ["z.-1"]}, "layers are 0…2"), ({"edits": [Scale("z.0", 0.0, heads=4)]}, "head 4.*0…3"),
    ({"edits": [Scale("k.0", 0.0, heads=2)]}, "head 2.*0…1"),
    ({"edits": [Scale("mlp_out.0", 0.0, heads=0)]}, "no heads.*pattern, z"),
    ({"edits": [Attend(0, 0, 3, [0, 1], [1.0, 2.0, 3.0])]}, "3 weights for 2 keys"),
    ({"edits": [Uniform(7, 0)]}, "layer 7"), ({"edits": [Attend(0, 9, 0, [0], [1.0])]}, "head 9"),
    ({"edits": [Attend(0, 0, 12, [0], [1.0])]}, "position 12"),
    ({"edits": [Scale("z.0", 0.0, positions=[12])]}, "position 12.*0…11"),
    ({"edits": [Scale("z.0", 0.0, rows=[6])]}, "row 6"),
    ({"edits": [Replace("z.0", torch.zeros(5))]}, "broadcast"),
    ({"capture": ["pattern.0"], "kernel": "sdpa"}, "eager"),
])  # fmt: skip
def test_what_a_model_does_not_have_is_named_with_the_choices(llama_golden, what, says):
    with pytest.raises(ValueError, match=says, check=lambda e: isinstance(e, InvalidOption)):
        trace(llama_golden.model, llama_golden.clean, **what)


def test_a_capture_that_was_not_asked_for_is_a_key_error(golden):
    t = trace(golden.model, golden.clean, capture=["z.1", "z.0"])
    assert list(t) == ["z.0", "z.1"]
    with pytest.raises(KeyError, match=r"captured are z.0, z.1"):
        t["z.2"]


def test_patterns_too_large_are_refused_before_they_are_computed(llama_golden):
    ids = torch.zeros(1, 3000, dtype=torch.long)
    with pytest.raises(TooLarge, match="3000·3000"):
        trace(llama_golden.model, ids, capture=["pattern.0"], max_cells=10**7)
    with pytest.raises(ValueError, match="max_cells"):
        trace(llama_golden.model, ids, kernel="eager", max_cells=10**7)
    last = trace(llama_golden.model, ids, capture=["pattern.0"], queries=[-1], max_cells=10**5, keep=1)
    assert last.logits.shape == (1, 1, 64)


def test_a_seam_of_ones_own_replaces_attention_and_keeps_the_taps(llama_golden):
    offsets = []

    def first_value(layer, q, k, v, offset):
        offsets.append(offset)
        return v[:, :1].repeat_interleave(2, 2).expand_as(q)

    t = trace(llama_golden.model, llama_golden.clean, attend=first_value, capture=["z.1", "v.1"])
    torch.testing.assert_close(t["z.1"][:, 5, 3], t["v.1"][:, 0, 1])
    assert offsets == [0, 0, 0]
    with pytest.raises(ValueError, match="attend of one's own"):
        trace(llama_golden.model, llama_golden.clean, attend=first_value, capture=["pattern.1"])


GOLDEN = Path(__file__).parent / "golden"
LAYERS, HEADS = range(3), range(4)


def test_overridden_rows_and_uniform_masking_are_golden(golden):
    for case in golden.facts["attention_override"]:
        edit = Attend(case["layer"], case["head"], case["query"], case["keys"], case["weights"])
        logits = trace(golden.model, golden.clean, edits=[edit]).logits
        assert golden.logit_diff(logits) == pytest.approx(case["logit_diff"], abs=1e-4)
        torch.testing.assert_close(logits[0, -1], torch.tensor(case["last_logits_row0"]), atol=1e-4, rtol=0)
    for case in golden.facts["uniform_at_positions"]:
        edit = Uniform(case["layer"], case["head"], case["positions"])
        logits = trace(golden.model, golden.clean, edits=[edit]).logits
        assert golden.logit_diff(logits) == pytest.approx(case["logit_diff"], abs=1e-4)


def check_sweep(golden, edits, known):
    """The logit difference under each edit alone."""
    found = [golden.logit_diff(t.logits) for t in sweep(golden.model, golden.clean, [[one] for one in edits], batch=5)]
    np.testing.assert_allclose(found, np.ravel(known), atol=1e-4)


@pytest.mark.parametrize("name", ["zero_ablation_logit_diff", "uniform_attention_ablation_logit_diff"])
def test_ablation_of_each_head_is_golden(golden, name):
    make = Uniform if name.startswith("uniform") else lambda layer, head: Scale(f"z.{layer}", 0.0, head)
    check_sweep(golden, [make(layer, head) for layer in LAYERS for head in HEADS], golden.facts[name])


@pytest.mark.parametrize(("site", "position"), [("q", None), ("k", None), ("v", None), ("z", None), ("z", -1)])
def test_patching_is_golden(golden, site, position):
    facts, where = golden.facts, "all" if position is None else "-1"
    patched = facts["activation_patching_logit_diff"] | {"z": facts["activation_patching_z_logit_diff"][where]}
    known = patched[site]
    corrupt = trace(golden.model, golden.corrupt, capture=[f"{site}.{layer}" for layer in LAYERS])
    heads = range(len(known[0]))
    edits = [Replace(name, value, heads=head, positions=position) for name, value in corrupt.items() for head in heads]
    check_sweep(golden, edits, known)


FAMILIES = ["gpt2", "llama", "qwen3", "gemma3, untied, stretched"]


def sites(model: Decoder) -> list[str]:
    layered = [site for site in SITES if site not in UNLAYERED_SITES]
    return [*sorted(UNLAYERED_SITES), *(f"{site}.{layer}" for site in layered for layer in range(model.config.layers))]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_lead_back_to_the_site(family):
    model = ours(theirs(family))
    named = {site: to_hook_name(site, model.config) for site in sites(model) if site not in {"embed", "final"}}
    for site, name in named.items():
        assert name is None or from_hook_name(name, model.config) == site
    assert len(set(filter(None, named.values()))) == len(list(filter(None, named.values())))
    assert from_hook_name("z.1", model.config) == "z.1"


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.hook_nothing", "blocks.3.attn.hook_z", "hook_pos_embed", "nothing", "z.01"]
)
def test_unknown_hook_points_are_refused_by_name(name):
    with pytest.raises(InvalidTap):
        from_hook_name(name, ours(theirs("llama")).config)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_under_module_paths_are_those_of_transformers(family):
    twin = theirs(family)
    model, text = ours(twin), ids(2, 9)
    wanted = {path: site for site in sites(model) if (path := to_module_path(site, model.config))}
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_module: Any, inputs: Any, kwargs: Any, output: Any) -> None:
            value = (inputs[0] if inputs else kwargs["hidden_states"]) if path.endswith("input") else output
            seen[path] = value[0] if isinstance(value, tuple) else value

        return hook

    for path in wanted:
        twin.get_submodule(path.rpartition(".")[0]).register_forward_hook(keep(path), with_kwargs=True)
    with torch.no_grad():
        twin(text)
    found = trace(model, text, capture=wanted.values())
    for path, site in wanted.items():
        torch.testing.assert_close(found[site].reshape(seen[path].shape), seen[path], atol=1e-4, rtol=1e-4, msg=path)
