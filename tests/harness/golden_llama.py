"""The tiny Llama whose published numbers engine, methods and head plans are held against; its weights follow a rule."""

import zlib

import numpy as np
import torch

from shared.lm.builders import llama
from shared.lm.decoder import Decoder


def uniform(seed: int, n: int) -> np.ndarray:
    """Numbers in [-1, 1) by splitmix64, as the READMEs of the golden data say."""
    z = (np.uint64(seed) << np.uint64(32)) + np.arange(n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z += np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def fill_llama(salt: int = 101, vocab: int = 96, layers: int = 3) -> Decoder:
    model = llama(
        vocab=vocab, width=64, layers=layers, heads=4, kv_heads=2, hidden=128, positions=4096, norm_eps=1e-5,
        head_dim=16,
    ).double()  # fmt: skip
    weights = {}
    for key, old in model.state_dict().items():
        x = uniform((zlib.crc32(key.encode()) + salt) % 2**32, old.numel()).reshape(old.shape)
        if "norm" in key:
            x = 1 + 0.1 * x
        elif "embed" not in key:
            x = x * np.sqrt(3 / old.shape[1]) * (2.5 if "q_proj" in key or "k_proj" in key else 1)
        weights[key] = torch.from_numpy(x)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(requires_grad=False)
