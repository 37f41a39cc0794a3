"""Routing equals both released forms; the causal mode equals brute force, looks at nothing later, and streams."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import NotFound
from fovea_memory.experiments.routing_clusters import RoutingClusters
from fovea_memory.mixers.routing import attention as routing
from shared.registry import CallContext, LoadContext, network


@pytest.fixture
def file(golden):
    return golden("routing_attention")


def heads(file):
    return file["q"], file["k"], file["v"], file["means"], 6


def members_equal(found, expected):
    return torch.equal(found.sort(-1).values, expected.long().sort(-1).values)


@pytest.mark.parametrize(("name", "shared", "causal"), [
    ("shared_causal", True, True), ("sep_causal", False, True), ("sep_full", False, False),
])  # fmt: skip
def test_port_mode_equals_the_port(file, name, shared, causal):
    memory = (file["sep_causal_mem_key"], file["sep_causal_mem_value"]) if causal and not shared else None
    found = routing.route(*heads(file), mode="port", shared=shared, causal=causal, memory=memory)
    assert (found.out - file[f"{name}_out"]).abs().max() < 2e-5
    assert abs(float(found.loss - file[f"{name}_aux"])) < 1e-8
    assert members_equal(found.query_members, file[f"{name}_members_0"])
    assert shared or members_equal(found.key_members, file[f"{name}_members_1"])


def test_padded_port_and_paper_mode_equal_the_authors_forms(file):
    mask = file["masked_mask"]
    found = routing.route(*heads(file), mode="port", mask=mask)
    assert (found.out - file["masked_out"])[mask[:, None].expand(2, 3, 24)].abs().max() < 2e-5
    found = routing.route(*heads(file), mode="paper")
    assert (found.out - file["google_shared_causal_out"]).abs().max() < 2e-5
    assert torch.equal(found.query_members, file["google_members_time_sorted"].long())


def test_centroids_follow_the_ports_rule_and_an_empty_cluster_keeps_its_mean(file):
    found = routing.update_centroids(file["q"], file["means"], decay=0.9)
    assert (found.distances - file["kmeans_dists"]).abs().max() < 2e-5
    assert abs(float(found.loss - file["kmeans_loss"])) < 1e-8
    assert (found.batch_means - file["kmeans_batch_means"]).abs().max() < 2e-5
    assert (found.centroids - file["kmeans_means_after_ema0.9"]).abs().max() < 2e-5
    far = file["means"].clone()
    far[:, 2] = -1000 * torch.ones(8)
    assert torch.equal(routing.update_centroids(file["q"].abs(), far, decay=0.5).batch_means[:, 2], far[:, 2])


def brute(q, k, v, means, window, shared, mask):
    def normal(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    q = normal(q)
    k = q if shared else normal(k)
    out = torch.zeros_like(v)
    B, H, T, d = q.shape
    for b in range(B):
        for h in range(H):
            of_q, of_k = ((x[b, h] @ means[h].T).argmax(-1).tolist() for x in (q, k))
            real = [mask is None or bool(mask[b, t]) for t in range(T)]
            for t in range(T):
                if not real[t]:
                    continue
                seen = [s for s in range(t + 1) if of_k[s] == of_q[t] and real[s]][-window:]
                seen = seen if t in seen else [*seen, t]
                logits = torch.stack([q[b, h, t] @ k[b, h, s] for s in seen]) / math.sqrt(d)
                out[b, h, t] = sum(w * v[b, h, s] for w, s in zip(logits.softmax(-1), seen, strict=True))
    return out


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("window", [1, 3, 50])
def test_causal_mode_equals_brute_force(file, shared, padded, window):
    q, k, v, means, _ = heads(file)
    mask = file["masked_mask"] if padded else None
    found = routing.route(q, k, v, means, window, shared=shared, mask=mask)
    assert (found.out - brute(q, k, v, means, window, shared, mask)).abs().max() < 2e-5
    if padded:
        assert (found.query_members[~mask[:, None].expand(2, 3, 24)] == -1).all()


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 5), st.integers(0, 999), st.booleans())
def test_steps_equal_all_at_once_in_bounded_memory(T, window, clusters, seed, shared):
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, T, 4, generator=draw) for _ in range(3))
    k = q if shared else k
    means = torch.randn(2, clusters, 4, generator=draw)
    state = routing.RoutingState(means, window, shared=shared)
    steps = zip(*(torch.split(x, 1, 2) for x in (q, k, v)), strict=True)
    parts = torch.cat([state.step(*step) for step in steps], 2)
    of = routing.nearest_cluster(routing.normalise(q), means)
    whole = routing.attend_clusters(routing.normalise(q), routing.normalise(k), v, of, of, clusters, window)
    if shared:
        whole = routing.route(q, q, v, means, window).out
        assert state.nbytes == 2 * 2 * 2 * clusters * window * 4 * 4
    assert (parts - whole).abs().max() < 1e-5
    assert (state.occupancy.sum(-1) == T).all()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 999))
def test_sorted_form_for_training_equals_the_masked_one_with_its_gradients(T, window, clusters, seed):
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, T, 4, generator=draw, requires_grad=True) for _ in range(3))
    of = torch.randint(-1, clusters, (2, 2, T), generator=draw)
    pull = torch.randn(2, 2, T, 4, generator=draw)
    masked = routing.attend_clusters(q, k, v, of, of, clusters, window)
    ordered = routing.attend_sorted(q, k, v, of, window)
    assert (masked - ordered).abs().max() < 1e-5
    ways = (torch.autograd.grad(out, (q, k, v), pull, retain_graph=True) for out in (masked, ordered))
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(*ways, strict=True))


def lm(file, mode):
    c = file.config["lm"]
    names = {"dim": "width", "depth": "layers", "dim_head": "head_dim", "max_seq_len": "context", "vocab": "vocab"}
    names |= {name: name for name in ("heads", "local_heads", "window", "local_window")}
    net = network("routing-lm", **{name: c[key] for key, name in names.items()}, mode=mode).eval()
    net.load_state_dict(file.weights())
    return net


def test_logits_and_keys_are_the_ports(file):
    net = lm(file, "port")
    with torch.no_grad():
        logits, loss = net.with_loss(file["lm_tokens"])
    assert (logits - file["lm_logits"]).abs().max() < 5e-5
    assert abs(float(loss - file["lm_aux"].sum())) < 1e-7
    net = lm(file, "causal")
    listed = {key for key, fact in file.facts["weights"].items() if "rule" not in fact or key.endswith("initted")}
    assert set(net.state_dict()) == listed
    extra = {key: torch.zeros(fact["shape"]) for key, fact in file.facts["weights"].items() if "rule" in fact}
    net.load_state_dict({**net.state_dict(), **extra})


def own_keys():
    torch.manual_seed(0)
    net = network("routing-lm", 40, 16, 3, 4, 8, 2, 8, 8, 64, shared=False, first=1)
    assert [attention.routes for _, attention, _, _ in net.blocks] == [False, True, True]
    return net.eval()


@pytest.mark.parametrize("shared", [True, False])
def test_stream_equals_the_whole_at_any_length_and_nobody_looks_ahead(file, shared):
    net, ids = lm(file, "causal") if shared else own_keys(), file["lm_tokens"][:, :41]
    other = ids.clone()
    other[:, 30:] = (other[:, 30:] + 1) % 40
    with torch.no_grad():
        whole, changed, trained = net(ids), net(other), net.train()(ids)
    session = net.eval().session(2)
    parts = torch.cat([session.feed(part) for part in ids.split([17, 1, 0, 23], 1)], 1)
    assert max((parts - whole).abs().max(), (trained - whole).abs().max()) < 5e-5
    assert (whole[:, :30] - changed[:, :30]).abs().max() < 1e-5
    assert (whole[:, 30:] - changed[:, 30:]).abs().max() > 1e-3
    assert all((counts.sum(-1) == 41).all() for counts in session.occupancy)
    before = session.nbytes
    session.feed(ids[:, :1])
    assert session.nbytes <= before + (1 if shared else 2) * 2 * 2 * 2 * 2 * 8 * 4


def test_lengths_that_do_not_fit_and_own_keys_of_the_port_are_refused(file):
    with pytest.raises(ValueError, match="shared=True"):
        network("routing-lm", 40, 16, 2, 4, 8, 2, 8, 8, 64, mode="port", shared=False)
    with pytest.raises(ValueError, match="multiple of 16"):
        lm(file, "port")(file["lm_tokens"][:, :20])
    with pytest.raises(ValueError, match="reads 64 tokens, not 65"):
        lm(file, "causal")(torch.zeros(1, 65, dtype=torch.long))
    session = lm(file, "causal").session(1)
    with pytest.raises(ValueError, match="reads 64 tokens"):
        session.feed(torch.zeros(1, 65, dtype=torch.long))


def test_reading_never_moves_centroids(file):
    net = lm(file, "causal")
    before = [attention.means.clone() for _, attention, _, _ in net.blocks]
    net(file["lm_tokens"])
    net.session(2).feed(file["lm_tokens"][:, :5])
    assert all(torch.equal(a.means, b) for (_, a, _, _), b in zip(net.blocks, before, strict=True))


def test_an_experiment_on_clusters_refuses_a_model_that_does_not_route(tmp_path):
    experiment = RoutingClusters.load(LoadContext(cache=tmp_path, weights=tmp_path, threads=1))
    (answer,) = experiment.predict([experiment.example().model_copy(update={"lm": "smollm2"})], CallContext())
    assert isinstance(answer, NotFound)
