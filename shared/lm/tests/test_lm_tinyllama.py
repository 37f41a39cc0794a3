"""A Llama whose weights follow from a rule, in float64, against the official forward."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.lm.builders import llama

SEED = 101
GOLDEN = Path(__file__).parent / "golden" / "tinyllama_dense.npz"


def noise(seed: int, count: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = (np.uint64(seed) << np.uint64(32)) + np.arange(count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def ruled(key: str, shape: torch.Size) -> torch.Tensor:
    x = torch.from_numpy(noise((zlib.crc32(key.encode()) + SEED) % 2**32, shape.numel())).view(shape)
    if "norm" in key:
        return 1 + 0.1 * x
    if "embed_tokens" in key:
        return x
    return x * (3 / shape[1]) ** 0.5 * (2.5 if "q_proj" in key or "k_proj" in key else 1.0)


@pytest.fixture(scope="module")
def model():
    made = llama(
        vocab=96, width=64, layers=3, heads=4, kv_heads=2, hidden=128, positions=4096, rope_theta=10000.0,
        norm_eps=1e-5, tied=False, head_dim=16,
    ).double()  # fmt: skip
    made.load_state_dict({key: ruled(key, x.shape) for key, x in made.state_dict().items()})
    return made.eval()


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as known:
        return {key: torch.from_numpy(known[key]) for key in known}


@pytest.mark.parametrize("chunks", [[160], [48, 48, 64], [1, 158, 1]])
@torch.no_grad()
def test_prefill_and_teacher_forced_decode_are_golden(model, golden, chunks):
    prompt, forced = golden["ids"][None, :160], golden["ids"][160:]
    cache = model.new_cache()
    read = torch.cat([model(piece, cache=cache) for piece in prompt.split(chunks, 1)], 1)[0]
    torch.testing.assert_close(read[::8].float(), golden["dense_prefill"], atol=2e-4, rtol=0)
    steps = torch.cat([model(token.view(1, 1), cache=cache)[0] for token in forced])
    torch.testing.assert_close(steps.float(), golden["dense_decode"], atol=2e-4, rtol=0)


@torch.no_grad()
def test_float64_does_not_depend_on_the_chunks(model, golden):
    prompt = golden["ids"][None, :160]
    cache = model.new_cache()
    pieces = torch.cat([model(piece, cache=cache) for piece in prompt.split(7, 1)], 1)
    torch.testing.assert_close(pieces, model(prompt), atol=1e-10, rtol=0)
