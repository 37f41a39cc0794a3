"""Titans models look at nothing that comes later, remember in constant space, and resume exactly from bytes."""

import dataclasses
import json
import struct
import zlib

import pytest
import torch

from fovea_memory.mixers.titans.state import SessionState, StateError, pack_state, unpack_state
from shared.registry import network

LAYOUTS = ("mac", "mag", "mal", "lmm", "attention")


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


@pytest.mark.parametrize("layout", LAYOUTS)
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


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda b: b[:10], "too few"),
        (lambda b: b"NOTASTATE"[:8] + b[8:], "not a state"),
        (lambda b: b[:8] + struct.pack("<I", 9) + b[12:], "format 9"),
        (lambda b: b[:-1], "were announced"),
        (lambda b: b + b"x", "were announced"),
        (lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:], "damaged"),
        (lambda b: seal(b, struct.pack("<I", 100_000) + b"[" * 100_000), "can't be read"),
    ],
)
def test_damaged_bytes_are_refused_with_the_reason(packed, damage, told):
    with pytest.raises(StateError, match=told):
        unpack_state(damage(packed), "digest")


def edit(packed, **facts):
    (size,) = struct.unpack_from("<I", packed, 20)
    header = json.dumps({**json.loads(packed[24 : 24 + size]), **facts}).encode()
    return seal(packed, struct.pack("<I", len(header)) + header + packed[24 + size :])


@pytest.mark.parametrize(
    "facts",
    [
        {"model": None}, {"model": 5}, {"index": float("inf")}, {"index": -1}, {"batch": "1"}, {"batch": 10**12},
        {"batch": 0}, {"batch": [1]}, {"tensors": [["0.rest", "float32", [-1]]]},
        {"tensors": [["x.rest", "float32", [10**12, 0]]]}, {"tensors": [[["0"], "float32", []]]}, {"tensors": {"a": 1}},
    ],
)  # fmt: skip
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


def test_state_that_is_not_finite_is_never_packed():
    state = model("lmm").session(1).state
    broken = dict(state.tensors)
    name = next(key for key in broken if "weights" in key)
    broken[name] = broken[name].clone().fill_(float("nan"))
    with pytest.raises(StateError, match="not finite"):
        pack_state(SessionState(3, 1, broken))


def test_memorys_own_state_survives_bytes():
    net = network("titans-memory", kernel="library", width=8, chunk=4, heads=2).eval()
    x = torch.randn(2, 7, 8)
    with torch.no_grad():
        _, state = net(x)
        back = unpack_state(pack_state(state, "m"), "m")
        first, second = net(x, state)[0], net(x, back)[0]
    assert torch.equal(first, second)
    assert dataclasses.asdict(back).keys() == dataclasses.asdict(state).keys()
    with pytest.raises(StateError, match="not of a session"):
        model("lmm").restore(pack_state(state))
