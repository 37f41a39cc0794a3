"""The oracle of sampling: sorted probabilities in float64, one row after the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GREEDY_BELOW = 1e-5

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEYS = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seed: Tensor, step: Tensor
) -> Tensor:
    """See `sample`."""
    chosen = []
    settings = (x.tolist() for x in (temperature, top_k, top_p, min_p, seed, step))
    for row, heat, k, p, least, number, at in zip(logits.detach().cpu().double(), *settings, strict=True):
        if heat < GREEDY_BELOW:
            chosen.append(int(row.numpy().argmax()))
            continue
        scores = row / heat + torch.from_numpy(draw_noise(number, at, len(row)))
        chosen.append(int(scores.masked_fill(~is_left(row, heat, k, p, least), -torch.inf).argmax()))
    return torch.tensor(chosen, dtype=torch.int64, device=logits.device)


def is_left(row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens of a row the limits leave, bool [V]."""
    probs = ((row - row.max()) / temperature).softmax(-1)
    probs = probs.where(probs >= min_p * probs.max(), 0.0)
    ordered, ids = probs.sort(descending=True, stable=True)
    if top_k:
        ordered[top_k:] = 0
    before = ordered.cumsum(-1) - ordered
    stays = ordered > 0
    if top_p < 1:
        stays &= before < max(top_p, 1e-9) * ordered.sum()
    left = torch.zeros_like(stays)
    left[ids[stays]] = True
    return left


def draw_noise(seed: int, step: int, vocab: int) -> np.ndarray:
    """Gumbel noise of the tokens 0 … vocab − 1: −log(−log(1 − u)), u from Philox 4×32-10 at (token, step)."""
    counter = [np.arange(vocab, dtype=np.uint64), np.full(vocab, step, np.uint64), *np.zeros((2, vocab), np.uint64)]
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = (np.uint64(m) * x for m, x in zip(_MULTIPLIERS, (counter[0], counter[2]), strict=True))
        counter = [
            (b >> np.uint64(32)) ^ counter[1] ^ np.uint64(key[0]),
            b & _LOW,
            (a >> np.uint64(32)) ^ counter[3] ^ np.uint64(key[1]),
            a & _LOW,
        ]
        key = [(k + more) & 0xFFFFFFFF for k, more in zip(key, _KEYS, strict=True)]
    noise: np.ndarray = -np.log(-np.log1p(-(counter[0].astype(np.float64) + 0.5) / 2**32))
    return noise
