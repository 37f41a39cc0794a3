"""Seven mixers equal their goldens; recurrences and sessions equal the parallel forms, and nobody looks ahead."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea_memory.mixers.deconstructed.mixers import Recurrence, Variant, attention_map, cache_bytes, mix
from shared.registry import network
from tests.harness.hypothesis_profiles import fewer

VARIANTS, NAMES = get_args(Variant), {"random_qk": "fixed_qk", "static_qk": "static_emb_qk"}


@pytest.fixture
def file(golden):
    return golden("deconstruct_variants")


def weights(file, dtype=torch.float32):
    D, hidden = 24, 32
    made = {f"{n}_proj.weight": file.made(f"{n}_proj.weight", (D, D), D**-0.5) for n in "qkvo"}
    made |= {f"{n}_proj.weight": file.made(f"mlp.{n}", (hidden, D), D**-0.5) for n in ("gate", "up")}
    made["down_proj.weight"] = file.made("mlp.down", (D, hidden), hidden**-0.5)
    return {key: value.to(dtype) for key, value in made.items()}


def source(file, variant):
    return {"random_qk": file["X_fixed"], "fixed_qk": file["X_fixed"], "static_qk": file["E_static"]}.get(variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_mixer_equals_its_golden(file, variant, dtype, tolerance):
    found = mix(variant, file["H"].to(dtype), weights(file), 3, source(file, variant))
    assert found.dtype == dtype
    assert (found - file[NAMES.get(variant, variant)]).abs().max() < tolerance


def test_variants_without_what_they_need_say_so(file):
    with pytest.raises(ValueError, match="no attention map"):
        attention_map("mlp", file["H"], weights(file), 3)
    with pytest.raises(ValueError, match="needs a source"):
        mix("fixed_qk", file["H"], weights(file), 3)
    with pytest.raises(ValueError, match="has 4 tokens, the input 11"):
        mix("random_qk", file["H"], weights(file), 3, file["X_fixed"][:4])
    with pytest.raises(ValueError, match="no recurrence"):
        Recurrence("standard", weights(file), 3, 2)


@settings(max_examples=fewer(3))
@given(variant=st.sampled_from(["approximate", "nonapproximate"]), scale=st.floats(0.1, 300), seed=st.integers(0, 99))
def test_recurrence_equals_the_parallel_form_in_constant_space(variant, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    w = {f"{n}_proj.weight": torch.randn(8, 8, generator=draw, dtype=torch.float64) * 8**-0.5 for n in "qkvo"}
    hidden = scale * torch.randn(2, 9, 8, generator=draw, dtype=torch.float64)
    state, sizes, parts = Recurrence(variant, w, 2, 2), set(), []
    for x in hidden.unbind(1):
        parts.append(state.step(x))
        sizes.add(state.state_bytes())
    expected = mix(variant, hidden, w, 2)
    assert (torch.stack(parts, 1) - expected).abs().max() < 1e-9 * max(1.0, float(expected.abs().max()))
    assert sizes == {cache_bytes(variant, 2, 9, 8, 2, itemsize=8)}


def model(variant, kind="hybrid", seed=0, **more):
    torch.manual_seed(seed)
    sizes = {"vocab": 20, "width": 24, "layers": 3, "heads": 3, "context": 20, **more}
    net = network("deconstructed-lm", **sizes, mixer=variant, layout=kind).eval()
    for parameter in net.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def tokens(length, batch=2):
    return torch.randint(0, 20, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["uniform", "hybrid"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_session_in_pieces_equals_one_pass_and_nobody_looks_ahead(variant, kind):
    net, ids = model(variant, kind), tokens(14)
    other = ids.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 20
    with torch.no_grad():
        whole, changed = net(ids), net(other)
    session = net.session(2)
    assert (torch.cat([session.feed(part) for part in ids.split([5, 1, 0, 1, 7], 1)], 1) - whole).abs().max() < 2e-5
    assert (whole[:, :9] - changed[:, :9]).abs().max() < 1e-6
    assert (whole[:, 9:] - changed[:, 9:]).abs().max() > 1e-3


def test_state_is_what_the_formulas_say():
    for variant in VARIANTS:
        session = model(variant, "uniform").session(2)
        session.feed(tokens(8))
        formula = cache_bytes(variant, 2, 8, 24, 3, itemsize=4)
        fixed = cache_bytes(variant, 0, 20, 24, 3, itemsize=4) * 2 if variant in {"random_qk", "fixed_qk"} else 0
        assert session.nbytes == [2 * 8 * 24 * 4 + fixed if fixed else formula] * 3


def test_skip_leaves_the_variants_layers_out():
    net, ids = model("nonapproximate"), tokens(7)
    with torch.no_grad():
        before = net(ids, skip=True)
        for parameter in net.layers[0].parameters():
            parameter.zero_()
        assert torch.equal(net(ids, skip=True), before)
        assert not torch.equal(net(ids), before)


def test_input_longer_than_the_model_reads_is_refused():
    with pytest.raises(ValueError, match="reads 20 tokens, not 21"):
        model("random_qk")(tokens(21))
    session = model("fixed_qk").session(2)
    session.feed(tokens(20))
    with pytest.raises(ValueError, match="reads 20 tokens"):
        session.feed(tokens(1))
