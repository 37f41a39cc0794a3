"""Landmark attention equals the official code's numbers, and a stream equals the whole where nothing is left out."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea_memory.mixers.landmark.attention import RetrievedBlock, citations, landmark_softmax, regular_softmax
from shared.registry import network

RULES = ("per_token_and_head", "max_over_heads", "max_over_tokens")


@pytest.fixture
def gpt(golden):
    file = golden("landmark_gpt")
    c = file.config
    sizes = {"vocab": c["vocab"], "width": c["n_embd"], "layers": c["n_layer"], "heads": c["n_head"]}
    net = network("landmark-gpt", **sizes, block=c["block"], landmark_id=c["landmark_id"], context=64).eval()
    net.load_state_dict(file.weights())
    return net, file


@pytest.fixture
def llama(golden):
    file = golden("landmark_llama")
    c = file.config
    sizes = {"vocab": c["vocab"], "width": c["hidden"], "layers": c["layers"], "heads": c["heads"]}
    more = {"intermediate": c["inter"], "block": c["mem_freq"], "landmark_id": c["mem_id"], "context": 64}
    net = network("landmark-llama", **sizes, **more).eval()
    net.load_state_dict(file.weights())
    return net, file


def fed(session, tokens, chunks):
    steps = [session.feed(part) for part in tokens.split(chunks, 1)]
    return torch.cat([step.logits for step in steps], 1), steps


def assert_chosen(steps, expected):
    found = [blocks for step in steps for blocks in step.blocks if blocks is not None]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.expand(theirs.shape), theirs.long().sort(-1).values)


@pytest.mark.parametrize("pattern", ["reg", "irr", "none"])
def test_weights_and_gradients_equal_the_official_softmax(golden, pattern):
    file = golden("landmark_grouped_softmax")
    scores = file[f"{pattern}_scores"].requires_grad_()
    weights = landmark_softmax(scores, file[f"{pattern}_is_landmark"], empty="keep")
    assert (weights - file[f"{pattern}_probs"]).abs().max() < 1e-6
    weights.backward(file[f"{pattern}_grad_out"])
    assert (scores.grad - file[f"{pattern}_grad_scores"]).abs().max() < 1e-5


@pytest.mark.parametrize(("T", "block"), [(1, 3), (4, 3), (5, 3), (23, 4), (24, 1), (30, 50)])
def test_regular_form_equals_the_general_one(T, block):
    scores = torch.randn(2, 3, T, T, dtype=torch.float64, requires_grad=True)
    landmark = ((torch.arange(T) + 1) % (block + 1) == 0).expand(2, T)
    general, regular = landmark_softmax(scores, landmark), regular_softmax(scores, block)
    assert (general - regular).abs().max() < 1e-12
    weight = torch.randn_like(general)
    first, second = (torch.autograd.grad((out * weight).sum(), scores)[0] for out in (general, regular))
    assert (first - second).abs().max() < 1e-12


@given(st.lists(st.booleans(), min_size=1, max_size=14), st.integers(0, 2**16))
def test_rows_sum_to_one_landmarks_weigh_nothing_and_nobody_looks_ahead(pattern, seed):
    draw = torch.Generator().manual_seed(seed)
    landmark, T = torch.tensor([pattern]), len(pattern)
    weights = landmark_softmax(3 * torch.randn(1, 2, T, T, generator=draw), landmark)[0, 0]
    assert (weights[:, landmark[0]] == 0).all()
    assert (weights.triu(1) == 0).all()
    sums = weights.sum(-1)
    assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0).all()
    # a row is empty only where no ordinary token can be reached through any landmark or in the own block
    assert all(sums[i] > 0 for i in range(T) if not all(pattern[: i + 1]))


def test_released_form_loses_attention_in_empty_blocks_and_ours_does_not():
    scores, landmark = torch.zeros(1, 1, 5, 5), torch.tensor([[False, True, True, True, False]])
    kept = landmark_softmax(scores, landmark, empty="keep")[0, 0, -1]
    masked = landmark_softmax(scores, landmark)[0, 0, -1]
    assert (float(kept.sum()), masked.tolist()) == (pytest.approx(0.5), pytest.approx([0.5, 0, 0, 0, 0.5]))


def test_uncached_logits_equal_the_official_ones(gpt, llama):
    for (net, file), ids, logits in ((gpt, "train_input_ids", "train_logits"), (llama, "input_ids", "logits_train")):
        assert (net(file[ids]) - file[logits]).abs().max() < 2e-5


def test_keys_are_the_checkpoints_and_its_buffers_may_be_there(gpt, llama):
    for net, file in (gpt, llama):
        listed = {key: fact["shape"] for key, fact in file.facts["weights"].items() if "rule" not in fact}
        state = net.state_dict()
        assert {key: list(value.shape) for key, value in state.items()} == listed
        made = {key: torch.zeros(fact["shape"]) for key, fact in file.facts["weights"].items() if "rule" in fact}
        net.load_state_dict({**state, **made})
        with pytest.raises(RuntimeError, match="stranger"):
            net.load_state_dict({**state, "stranger": torch.zeros(1)})


@pytest.mark.parametrize("rule", RULES)
def test_cached_gpt_equals_the_official_memory_cache(gpt, rule):
    net, file = gpt
    session = net.session(2, blocks=2, selection=rule, positions="released", capacity=16)
    logits, steps = fed(session, file["tokens"], file["chunks"].tolist())
    assert_chosen(steps, [file[f"cache_{rule}_pick_{i:02}"] for i in range(12)])
    assert (logits - file[f"cache_{rule}_logits"]).abs().max() < 5e-5


CACHED = {f"k{n}": {"blocks": n} for n in (1, 2, 3)}
CACHED["k2_offload"] = {"blocks": 2, "selection": "max_over_tokens", "offload": True}


@pytest.mark.parametrize(("tag", "options"), CACHED.items())
def test_cached_llama_equals_the_official_code(llama, tag, options):
    net, file = llama
    session = net.session(1, insert_landmarks=False, **options)
    logits, steps = fed(session, file["input_ids"][:, :43], [10, 10, 10, 5, 5, 1, 1, 1])
    expected = sorted(key for key in file.arrays if re.fullmatch(rf"blocks_{tag}_\d*\d\d", key))
    assert_chosen(steps, [file[key] for key in expected])
    assert (logits - file[f"logits_cached_{tag}"]).abs().max() < 5e-5


@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=12), rule=st.sampled_from(RULES))
def test_stream_equals_the_whole_when_no_block_is_left_out(cuts, rule):
    net, length = small("landmark-gpt"), sum(cuts)
    tokens = torch.randint(0, 20, (2, length))
    session = net.session(2, blocks=99, selection=rule)
    whole = net(with_landmarks(tokens))
    logits, _ = fed(session, tokens, cuts)
    assert (logits - whole[:, (with_landmarks(tokens) != 20)[0]]).abs().max() < 2e-5


def small(kind):
    torch.manual_seed(5)
    more = {"intermediate": 24} if kind == "landmark-llama" else {}
    net = network(kind, vocab=21, width=16, layers=2, heads=2, block=3, landmark_id=20, context=64, **more).eval()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return net


def with_landmarks(tokens, block=3):
    parts = [
        part if part.shape[1] < block else torch.cat((part, torch.full_like(part[:, :1], 20)), 1)
        for part in tokens.split(block, 1)
    ]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_blocks_off_the_device_give_equal_logits_and_their_bytes_are_counted(offload):
    net, tokens = small("landmark-llama"), torch.randint(0, 20, (2, 50))
    near, away = (net.session(2, blocks=2, selection="max_over_tokens", offload=where) for where in (False, offload))
    first, _ = fed(near, tokens, 10)
    second, steps = fed(away, tokens, 10)
    assert torch.equal(first, second)
    block_bytes = 2 * 4 * 8 * 4  # keys and values, L + 1 entries of d = 8 float32
    chosen = sum(b.numel() for step in steps for b in step.blocks if b is not None)
    assert (near.moved_bytes, away.moved_bytes) == (0, chosen * block_bytes)
    assert (max(b.shape[2] for step in steps for b in step.blocks if b is not None), near.nbytes) == (1, away.nbytes)


def test_oldest_blocks_leave_a_full_store_and_numbers_stay_absolute():
    net, tokens = small("landmark-gpt"), torch.randint(0, 20, (1, 60))
    session = net.session(1, blocks=2, capacity=4)
    _, steps = fed(session, tokens, 3)
    assert session.num_blocks == 4
    assert steps[-1].blocks[1].min() >= 15
    assert steps[-1].blocks[1].max() == 18


def test_stream_whose_landmarks_are_not_regular_is_refused():
    session = small("landmark-gpt").session(1, insert_landmarks=False)
    with pytest.raises(ValueError, match="exactly every 3 tokens"):
        session.feed(torch.tensor([[1, 2, 20]]))


def test_mean_of_keys_chooses_otherwise_and_reads_the_same_when_all_is_chosen():
    net, tokens = small("landmark-gpt"), torch.randint(0, 20, (1, 40))
    logits, chosen = {}, {}
    for gate in ("landmark", "mean"):
        for k in (2, 99):
            logits[gate, k], steps = fed(net.session(1, blocks=k, gate=gate), tokens, 4)
            chosen[gate, k] = steps[-1].blocks[1]
    assert (logits["landmark", 99] - logits["mean", 99]).abs().max() < 1e-6
    assert not torch.equal(chosen["landmark", 2], chosen["mean", 2])


def test_citations_count_votes_and_break_ties_by_age():
    layers = [None, torch.tensor([[[[0, 3]], [[3, 5]]]]), torch.tensor([[[[5, 0]], [[7, 3]]]])]
    assert citations(layers, block=4, top=3) == [
        RetrievedBlock(3, 12, 16, 3 / 8, 3),
        RetrievedBlock(0, 0, 4, 2 / 8, 2),
        RetrievedBlock(5, 20, 24, 2 / 8, 2),
    ]
    assert citations([None, None], block=4) == []
