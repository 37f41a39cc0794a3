"""Landmark attention equals the official code's numbers, streams, and goes on elsewhere as if nothing had happened."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea_memory.mixers.landmark.attention import RetrievedBlock, citations, landmark_softmax
from fovea_memory.mixers.landmark.serialization import BlocksError, pack_blocks, unpack_blocks
from fovea_memory.state.document_cache import CHECKPOINT_TOKENS, DocumentCache
from shared.registry import network

RULES = ("per_token_and_head", "max_over_heads", "max_over_tokens")


def load(file, kind, names):
    net = network(kind, **{ours: file.config[theirs] for ours, theirs in names.items()}, context=64).eval()
    net.load_state_dict(file.weights())
    return net, file


@pytest.fixture
def gpt(golden):
    names = {"vocab": "vocab", "width": "n_embd", "layers": "n_layer", "heads": "n_head", "block": "block"}
    return load(golden("landmark_gpt"), "landmark-gpt", names | {"landmark_id": "landmark_id"})


@pytest.fixture
def llama(golden):
    names = {"vocab": "vocab", "width": "hidden", "layers": "layers", "heads": "heads", "intermediate": "inter"}
    return load(golden("landmark_llama"), "landmark-llama", names | {"block": "mem_freq", "landmark_id": "mem_id"})


def fed(session, tokens, chunks):
    steps = [session.feed(part) for part in tokens.split(chunks, 1)]
    return torch.cat([step.logits for step in steps], 1), steps


def assert_chosen(steps, expected):
    found = [blocks for step in steps for blocks in step.blocks if blocks is not None]
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


def test_released_form_loses_attention_in_empty_blocks_and_ours_does_not():
    scores, landmark = torch.zeros(1, 1, 5, 5), torch.tensor([[False, True, True, True, False]])
    kept = landmark_softmax(scores, landmark, empty="keep")[0, 0, -1]
    masked = landmark_softmax(scores, landmark)[0, 0, -1]
    assert (float(kept.sum()), masked.tolist()) == (pytest.approx(0.5), pytest.approx([0.5, 0, 0, 0, 0.5]))


def test_uncached_logits_and_keys_are_the_official_ones(gpt, llama):
    for (net, file), ids, logits in ((gpt, "train_input_ids", "train_logits"), (llama, "input_ids", "logits_train")):
        assert (net(file[ids]) - file[logits]).abs().max() < 2e-5
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
    parts, mark = tokens.split(block, 1), torch.full_like(tokens[:, :1], 20)
    return torch.cat([one for part in parts for one in (part, mark[:, : part.shape[1] // block])], 1)


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


BLOCK, LANDMARK = 5, 30  # A block that fills no stretch: sessions are cut with an open block


@pytest.fixture
def net():
    torch.manual_seed(2)
    sizes = {"vocab": 31, "width": 16, "layers": 2, "heads": 2}
    return network("landmark-gpt", **sizes, block=BLOCK, landmark_id=LANDMARK, context=64).eval()


def _read(net, tokens, **knobs):
    session = net.session(1, **knobs)
    for part in tokens.split(7, 1):
        session.feed(part)
    return session


@pytest.mark.parametrize("knobs", [{}, {"capacity": 4}, {"offload": "cpu"}, {"offload": "disk", "capacity": 1}])
@pytest.mark.parametrize("read", [3, 5, 44, 64])
def test_session_goes_on_to_the_last_bit(net, knobs, read):
    tokens = torch.randint(0, LANDMARK, (1, read + 20))
    ours = _read(net, tokens[:, :read], **knobs)
    theirs = unpack_blocks(pack_blocks(ours, "this"), "this", net.session(1, **knobs), read)
    assert (theirs.nbytes, theirs.num_blocks, theirs.first_block) == (ours.nbytes, ours.num_blocks, ours.first_block)
    for part in tokens[:, read:].split(6, 1):
        mine, other = ours.feed(part), theirs.feed(part)
        assert torch.equal(mine.logits, other.logits)
        for a, b in zip(mine.blocks, other.blocks, strict=True):
            assert a is b is None or torch.equal(a, b)


def test_other_length_name_or_way_of_reading_is_refused(net):
    data = pack_blocks(_read(net, torch.ones(1, 44, dtype=torch.long)), "this")
    for name, tokens, knobs in (("that", 44, {}), ("this", 45, {}), ("this", 50, {}), ("this", 44, {"capacity": 2})):
        with pytest.raises(BlocksError):
            unpack_blocks(data, name, net.session(1, **knobs), tokens)
    for broken in (b"", data[:4], data[:-1], data + b"x", b"\xff" * 8 + data[8:]):
        with pytest.raises(BlocksError):
            unpack_blocks(broken, "this", net.session(1), 44)


def test_planted_session_is_found_and_what_grows_behind_it_goes_first(net):
    ids = torch.randint(0, LANDMARK, (4 * CHECKPOINT_TOKENS,)).tolist()
    sessions = [_read(net, torch.tensor([ids[: n * CHECKPOINT_TOKENS]])) for n in (1, 2, 3, 4)]
    cache = DocumentCache()
    cache.insert(b"base", ids[: 2 * CHECKPOINT_TOKENS + 9], sessions[1])
    assert cache.find_longest(b"base", ids, len(ids))[1] == 2 * CHECKPOINT_TOKENS
    assert cache.find_longest(b"base", ids, 2 * CHECKPOINT_TOKENS - 1) is None
    cache.add(b"base", ids[: 3 * CHECKPOINT_TOKENS], sessions[2])
    assert (len(cache), cache.nbytes) == (2, sessions[2].nbytes)
    cache.add(b"base", ids[:CHECKPOINT_TOKENS], sessions[0])  # read from the start after all: a chain of its own
    assert (len(cache), cache.nbytes) == (3, sessions[2].nbytes + sessions[0].nbytes)
    tight = DocumentCache(max_bytes=sessions[2].nbytes - 1)
    tight.insert(b"base", ids[: 2 * CHECKPOINT_TOKENS], sessions[1])
    tight.add(b"base", ids[: 3 * CHECKPOINT_TOKENS], sessions[2])
    assert tight.find_longest(b"base", ids, len(ids))[1] == 2 * CHECKPOINT_TOKENS
    cache.remove(b"base", ids)
    assert (len(cache), cache.nbytes, cache.num_blocks) == (0, 0, 0)


def test_what_is_larger_than_the_shelf_pushes_nothing_off(net):
    ids = list(range(LANDMARK)) * 10
    small, large = (_read(net, torch.tensor([ids[:end]])) for end in (CHECKPOINT_TOKENS, 4 * CHECKPOINT_TOKENS))
    cache = DocumentCache(max_bytes=large.nbytes - 1)
    cache.insert(b"one", ids[:CHECKPOINT_TOKENS], small)
    cache.insert(b"two", ids[: 4 * CHECKPOINT_TOKENS], large)
    assert cache.find_longest(b"one", ids, CHECKPOINT_TOKENS) is not None
    assert cache.find_longest(b"two", ids, 4 * CHECKPOINT_TOKENS) is None
