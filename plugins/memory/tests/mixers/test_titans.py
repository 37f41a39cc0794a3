"""Titans: the memory equals the library and a loop; models look at nothing later and resume exactly from bytes."""

import json
import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea_memory.mixers.titans.fast_weights import recur
from fovea_memory.mixers.titans.state import StateError, unpack_state
from shared.registry import network
from tests.harness.hypothesis_profiles import fewer

CASES = (
    "paper_d1", "paper_d2", "token_d2", "nomom_d2", "default", "paper_faithful_b4", "paper_faithful_b4_d1",
    "batch8", "heads2_qknorm",
)  # fmt: skip
NAMES = {
    "dim": "width", "chunk_size": "chunk", "batch_size": "refresh", "mem_model_norm_add_residual": "residual_norm",
    "pre_rmsnorm": "input_norm", "qk_rmsnorm": "qk_norm", "dim_head": "head_dim", "max_lr": "max_rate",
}  # fmt: skip
SAME = {"heads", "momentum", "depth", "expansion"}


def library(golden, case):
    file = golden("titans_memory")
    facts = file.facts["cases"][case]
    config = {NAMES.get(key, key): value for key, value in facts["config"].items() if key in SAME or key in NAMES}
    net = network("titans-memory", kernel="library", **config).eval()
    listed = {key: fact for key, fact in facts["weights"].items() if not key.startswith("memory_model.")}
    net.load_state_dict(file.weights(listed))
    return net, file


def near(found, expected, tolerance=5e-5):
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all()


@pytest.mark.parametrize("case", CASES)
def test_library_kernel_equals_the_reference_library(golden, case):
    net, file = library(golden, case)
    with torch.no_grad():
        y, state, trace = net(file[f"{case}_x"], trace=True)
    near(y, file[f"{case}_retrieved"])
    near(trace.loss, file[f"{case}_loss"])
    near(trace.rate, file[f"{case}_lr"])
    near(state.rest, file[f"{case}_remainder"])
    last = [key for key in file.arrays if key.startswith(f"{case}_last_")]
    assert len(last) == len(state.weights)
    for ours, key in zip(state.weights, last, strict=True):
        near(ours, file[key])
    for ours, key in zip(state.momentum, [k for k in file.arrays if k.startswith(f"{case}_mom_")], strict=False):
        near(ours, file[key][0])


def paper(seed=0, **options):
    torch.manual_seed(seed)
    options = {"width": 12, "heads": 2, "depth": 2, "refresh": 4, "max_rate": 0.1, **options}
    return network("titans-memory", kernel="paper", **options).double().eval()


def sequential(net, x):
    """The paper's equations, token by token, with autograd for every gradient: nothing shared but the parameters."""
    H, d = net.heads, net.head_dim

    def project(linear, conv, unit):
        z = torch.nn.functional.silu(linear(x))
        padded = torch.nn.functional.pad(z, (0, 0, 3, 0))
        heads = sum(conv.weight[:, 0, i] * padded[:, i : i + x.shape[1]] for i in range(4)).view(*x.shape[:2], H, d)
        return heads / heads.norm(dim=-1, keepdim=True) if unit else heads

    q, k = (project(getattr(net, f"to_{n}"), getattr(net, f"conv_{n}"), unit=True) for n in ("queries", "keys"))
    v = project(net.to_values, net.conv_values, unit=False)
    theta = net.max_rate * torch.sigmoid(net.to_adaptive_step(x))
    eta, alpha = torch.sigmoid(net.to_momentum(x)), torch.sigmoid(net.to_decay_factor(x))

    def memory(weights, row):
        for i, w in enumerate(weights):
            row = row @ w if i == 0 else torch.nn.functional.gelu(row) @ w
        return row

    y = torch.zeros(*x.shape[:2], H, d, dtype=x.dtype)
    for b in range(x.shape[0]):
        for h in range(H):
            weights = [w[h].detach().clone() for w in net.memory_model_parameters]
            moment, base = [torch.zeros_like(w) for w in weights], weights
            for t in range(x.shape[1]):
                base = weights if t % net.refresh == 0 else base
                live = [w.clone().requires_grad_() for w in base]
                grads = torch.autograd.grad((memory(live, k[b, t, h]) - v[b, t, h]).square().sum(), live)
                moment = [eta[b, t, h] * s - theta[b, t, h] * g for s, g in zip(moment, grads, strict=True)]
                weights = [(1 - alpha[b, t, h]) * w + s for w, s in zip(weights, moment, strict=True)]
                y[b, t, h] = memory(weights, q[b, t, h])
    return net.combine_heads(y.flatten(2)) if H > 1 else y[:, :, 0]


@pytest.mark.parametrize(("depth", "heads", "refresh"), [(1, 1, 1), (1, 2, 4), (2, 2, 4), (3, 1, 5)])
def test_paper_kernel_equals_a_loop_with_autograd(depth, heads, refresh):
    net = paper(depth=depth, heads=heads, refresh=refresh)
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    with torch.no_grad():
        y, _ = net(x)
    assert (y - sequential(net, x.detach())).abs().max() < 1e-10


@settings(max_examples=fewer(2))
@given(cuts=st.lists(st.integers(0, 7), min_size=1, max_size=8), which=st.integers(0, 3))
def test_any_cut_of_a_stream_equals_one_pass(cuts, which):
    torch.manual_seed(1)
    library_options = {"kernel": "library", "width": 8, "chunk": 3, "refresh": 6, "qk_norm": True}
    nets = (
        paper(), paper(clamp=1.0, refresh=16), network("titans-memory", **library_options).double(),
        network("titans-memory", kernel="library", width=8, chunk=4, heads=2).double(),
    )  # fmt: skip
    net = nets[which].eval()
    x = torch.randn(2, sum(cuts), net.to_queries.weight.shape[1], dtype=torch.float64)
    with torch.no_grad():
        whole, last = net(x)
        state, parts = None, []
        for part in x.split(cuts, 1):
            y, state = net(part, state)
            parts.append(y)
    assert not whole.numel() or (torch.cat(parts, 1) - whole).abs().max() < 1e-9
    both = ((*s.weights, *s.momentum, *s.base) for s in (last, state))
    assert all((one - other).abs().max() < 1e-9 for one, other in zip(*both, strict=True))
    assert last.index == state.index == sum(cuts)


@pytest.mark.parametrize(("depth", "refresh"), [(1, 4), (1, 16), (2, 4), (2, 16)])
def test_clamped_memory_survives_what_blows_up_a_bare_one(depth, refresh):
    """Repeated tokens, rate and momentum gates wide open: stale gradients of a window and momentum add up."""

    def stressed(clamp):
        net = paper(width=16, heads=1, depth=depth, refresh=refresh, clamp=clamp).float()
        with torch.no_grad():
            net.to_adaptive_step[0].bias.fill_(8)
            net.to_momentum[0].bias.fill_(8)
            net.to_decay_factor[0].bias.fill_(-8)
            x = 3 * torch.randn(1, 400, 16)
            x[:, 100:200] = x[:, 100:101]
            y, state = net(x)
        return max(float(t.abs().max()) for t in (y, *state.weights))

    assert not stressed(None) < 1e4
    assert stressed(1.0) < 1e4


def test_memory_can_be_trained_through():
    net, x = paper(width=8, heads=1), torch.randn(2, 9, 8, dtype=torch.float64)
    weight = torch.randn(2, 9, 8, dtype=torch.float64)
    (net(x)[0] * weight).sum().backward()
    parameter, step = net.to_keys.weight, 1e-6
    with torch.no_grad():
        for where in ((0, 0), (3, 5)):
            values = []
            for sign in (1, -1):
                parameter[where] += sign * step
                values.append((net(x)[0] * weight).sum())
                parameter[where] -= sign * step
            assert float((values[0] - values[1]) / (2 * step)) == pytest.approx(float(parameter.grad[where]), rel=1e-5)


def test_recurrence_equals_its_loop_even_where_nothing_is_kept():
    start, added = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, 7, 2, 2, dtype=torch.float64)
    log_keep = -torch.rand(3, 7, dtype=torch.float64)
    log_keep[:, 3] = -200
    found, x = recur(start, added, log_keep), start
    for t in range(7):
        x = log_keep[:, t, None, None].exp() * x + added[:, t]
        assert (found[:, t] - x).abs().max() < 1e-12


def test_refresh_that_cuts_a_chunk_is_refused():
    with pytest.raises(ValueError, match="multiple of chunk 4"):
        network("titans-memory", kernel="library", width=8, chunk=4, refresh=6)


def model(layout, seed=0, **more):
    torch.manual_seed(seed)
    sizes = {"vocab": 30, "width": 16, "layers": 2, "heads": 2, "segment": 5, "window": 4, "persistent": 2}
    net = network(f"titans-{layout}", **{**sizes, "depth": 2, "refresh": 3, **more}).eval()
    for parameter in net.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def tokens(length, batch=2, seed=3):
    return torch.randint(0, 30, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", ["mac", "mag", "mal", "lmm", "attention"])
def test_session_that_moves_as_bytes_at_every_step_equals_one_pass(layout):
    net, ids = model(layout), tokens(17)
    with torch.no_grad():
        whole = net(ids)
    session, parts, sizes = net.session(2), [], set()
    for t in range(17):
        data = session.export("digest", t)
        sizes.add(len(data))
        session = net.restore(data, "digest")
        parts.append(session.feed(ids[:, t : t + 1]))
    assert (torch.cat(parts, 1) - whole).abs().max() < 3e-4
    assert (len(sizes), session.index) == (1, 17)


def test_far_into_a_stream_a_window_is_what_it_was():
    layer, draw = model("mag", layers=1).layers[0], torch.Generator().manual_seed(1)
    z, state = torch.randn(1, 12, 16, generator=draw), {"keys": torch.randn(2, 1, 2, 3, 8, generator=draw)}
    with torch.no_grad():
        layer.attention.persistent.zero_()  # these have no position, and see that of a query
        near, far = (layer.window(z, state, index)[0] for index in (16, 2**26))
    assert (near - far).abs().max() < 1e-5


def test_window_ends_where_it_says():
    layer, mixed = model("mag", layers=1).layers[0], []
    with torch.no_grad():
        for change in (False, True):
            z = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
            z[:, 3] += change
            mixed.append(layer.window(z, layer.initial_state(1), 0)[0])
        seen = ((mixed[0] - mixed[1]).abs().amax((0, 2)) > 1e-6).nonzero().flatten().tolist()
    assert seen == [3, 4, 5, 6]


def test_session_that_would_be_too_large_is_refused_by_its_configuration():
    with pytest.raises(ValueError, match="16,777,216 are allowed"):
        network("titans-lmm", vocab=8, width=768, layers=12, heads=1, depth=2)


@pytest.fixture
def packed():
    session = model("mac").session(1)
    session.feed(tokens(7, batch=1))
    return session.export("digest", 4)


def test_equal_states_give_equal_bytes_and_the_version_is_inside(packed):
    session = model("mac").session(1)
    session.feed(tokens(7, batch=1))
    assert session.export("digest", 4) == packed != session.export("digest", 5)
    assert b'"version":"0000000000000004"' in packed


def seal(packed, rest):
    """A state with a checksum that is right."""
    return struct.pack("<8sIII", packed[:8], 1, zlib.crc32(rest), len(rest)) + rest


@pytest.mark.parametrize(("damage", "told"), [
    (lambda b: b[:10], "too few"), (lambda b: b"NOTASTATE"[:8] + b[8:], "not a state"),
    (lambda b: b[:8] + struct.pack("<I", 9) + b[12:], "format 9"), (lambda b: b[:-1], "were announced"),
    (lambda b: b + b"x", "were announced"), (lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:], "damaged"),
    (lambda b: seal(b, struct.pack("<I", 100_000) + b"[" * 100_000), "can't be read"),
])  # fmt: skip
def test_damaged_bytes_are_refused_with_the_reason(packed, damage, told):
    with pytest.raises(StateError, match=told):
        unpack_state(damage(packed), "digest")


def edit(packed, **facts):
    (size,) = struct.unpack_from("<I", packed, 20)
    header = json.dumps({**json.loads(packed[24 : 24 + size]), **facts}).encode()
    return seal(packed, struct.pack("<I", len(header)) + header + packed[24 + size :])


@pytest.mark.parametrize("facts", [
    {"model": None}, {"model": 5}, {"index": float("inf")}, {"index": -1}, {"batch": "1"}, {"batch": 10**12},
    {"batch": 0}, {"batch": [1]}, {"tensors": [["0.rest", "float32", [-1]]]},
    {"tensors": [["x.rest", "float32", [10**12, 0]]]}, {"tensors": [[["0"], "float32", []]]}, {"tensors": {"a": 1}},
])  # fmt: skip
def test_states_whose_header_says_nonsense_are_refused(packed, facts):
    with pytest.raises(StateError):
        model("mac").restore(edit(packed, **facts), "digest")


def test_state_of_another_model_is_refused(packed):
    with pytest.raises(StateError, match="belongs to the model digest"):
        unpack_state(packed, "other")
    with pytest.raises(StateError, match="does not fit this model"):
        model("mac", width=24).restore(packed, "digest")
    with pytest.raises(StateError, match="does not fit this model"):
        model("mag").restore(packed, "digest")
