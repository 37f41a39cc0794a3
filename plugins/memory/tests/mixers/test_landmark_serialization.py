"""A landmark session goes on elsewhere as if nothing had happened, at any cut and from any home."""

import pytest
import torch

from fovea_memory.mixers.landmark.serialization import BlocksError, pack_blocks, unpack_blocks
from fovea_memory.state.document_cache import CHECKPOINT_TOKENS, DocumentCache, last_checkpoint
from shared.registry import network

BLOCK, LANDMARK = 5, 30
"""A block that fills no stretch: sessions are cut with an open block."""


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
    sessions = [
        _read(net, torch.tensor([ids[:end]]))
        for end in range(CHECKPOINT_TOKENS, 4 * CHECKPOINT_TOKENS + 1, CHECKPOINT_TOKENS)
    ]
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


def test_texts_shorter_than_a_stretch_have_no_beginning():
    assert last_checkpoint(b"base", range(CHECKPOINT_TOKENS - 1)) == (b"base", 0)
    assert last_checkpoint(b"base", range(CHECKPOINT_TOKENS))[1] == CHECKPOINT_TOKENS
