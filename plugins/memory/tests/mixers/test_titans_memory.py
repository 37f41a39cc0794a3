"""The memory equals the reference library and an independent loop; any cut equals one pass; it is stable."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea_memory.mixers.titans.fast_weights import recur
from shared.registry import network

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
        out = sum(conv.weight[:, 0, i] * padded[:, i : i + x.shape[1]] for i in range(4))
        heads = out.view(*x.shape[:2], H, d)
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


@given(cuts=st.lists(st.integers(0, 7), min_size=1, max_size=8), which=st.integers(0, 3))
def test_any_cut_of_a_stream_equals_one_pass(cuts, which):
    torch.manual_seed(1)
    library_options = {"kernel": "library", "width": 8, "chunk": 3, "refresh": 6, "qk_norm": True}
    nets = (
        paper(),
        paper(clamp=1.0, refresh=16),
        network("titans-memory", **library_options).double(),
        network("titans-memory", kernel="library", width=8, chunk=4, heads=2).double(),
    )
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


def test_given_state_is_left_as_it_is():
    net, x = paper(), torch.randn(1, 9, 12, dtype=torch.float64)
    with torch.no_grad():
        _, state = net(x)
        before = [w.clone() for w in (*state.weights, *state.momentum, *state.tails)]
        net(x, state)
    assert all(torch.equal(a, b) for a, b in zip(before, (*state.weights, *state.momentum, *state.tails), strict=True))


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
