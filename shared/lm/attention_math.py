"""Maths on attention maps: the streaming mask, column mass, sink calibration, echo masks.

Axes: H query heads, T queries, S keys. Knows tensors only; nothing about models, methods or experiments.
"""

import torch
from torch import Tensor


def streaming_mask(tokens: int, sink: int, recent: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the streaming mask, bool [T,T]: j <= i and (j < sink or i - j < recent); `recent` counts i itself."""
    i, j = torch.arange(tokens, device=device)[:, None], torch.arange(tokens, device=device)
    return (j <= i) & ((j < sink) | (i - j < recent))


def column_mean(pattern: Tensor) -> Tensor:
    """Return the mean attention that each key gets from the rows that can see it: causal [..., T, T] → [..., T]."""
    tokens = pattern.shape[-1]
    return pattern.sum(-2) / torch.arange(tokens, 0, -1, dtype=pattern.dtype, device=pattern.device)


def excuse_sink(sinks: Tensor, excuse: str) -> Tensor:
    """Return sinks [s] (ascending) without the excused one: the `first`, whatever its index, or only token `zero`."""
    return sinks[1:] if excuse == "first" else sinks[sinks != 0]


def calibrate(pattern: Tensor, sinks: Tensor, beta: float) -> Tensor:
    """Apply ACT's rule to a causal map [T,S]: sinks keep `beta` of their mass, the others share the rest in proportion.

    Rows that are all sink are left alone, and with them row 0.
    """
    is_sink = torch.zeros(pattern.shape[-1], dtype=torch.bool, device=pattern.device)
    is_sink[sinks] = True
    mass = (pattern * is_sink).sum(-1, keepdim=True)
    other = 1 - mass
    raised = pattern * (1 + (1 - beta) * mass / other.clamp_min(1e-300 if pattern.dtype == torch.float64 else 1e-30))
    return torch.where(other < 1e-12, pattern, torch.where(is_sink, beta * pattern, raised))


def calibrate_mixed(mixed: Tensor, weights: Tensor, values: Tensor, beta: float) -> Tensor:
    """Calibrate without the map: o' = beta·A + (1 + (1 - beta)·m / (1 - m))·(o - A), m = Σ_S p, A = Σ_S p·v.

    `mixed` is o, the plain output [...,T,d]; `weights` p [...,T,s] and `values` v [...,s,d] are those of the sinks.
    """
    mass, part = weights.sum(-1, keepdim=True), weights @ values
    other = 1 - mass
    raised = beta * part + (1 + (1 - beta) * mass / other.clamp_min(1e-12)) * (mixed - part)
    return torch.where(other < 1e-12, mixed, raised)


def echo_mask(queries: Tensor, tokens: int, period: int, shift: int = 0) -> Tensor:
    """Return the pairs (i, j + shift) of queries i [t], j an earlier copy of i in a text of that `period`: bool [t,T].

    `shift` 0 is echo (attention to the copy), 1 induction (to what followed it).
    """
    i, j = queries[:, None], torch.arange(tokens, device=queries.device) - shift
    return (j >= 0) & (j < i) & ((i - j) % period == 0)
