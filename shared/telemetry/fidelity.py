"""Fidelity metrics: how far answers under an attention method stray from dense attention."""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

from shared.telemetry.context import context

_NATS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)

FIDELITY_KL = Histogram(
    "fovea_fidelity_kl_nats",
    "KL(dense || method) per token of answers that were run again densely.",
    ["model", "method"],
    buckets=_NATS,
)
FIDELITY_TOP1 = Histogram(
    "fovea_fidelity_top1_agreement",
    "Share of tokens on which a method agrees with dense attention.",
    ["model", "method"],
    buckets=(0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1),
)
FIDELITY_DELTA = Histogram(
    "fovea_fidelity_loss_nats",
    "Log-likelihood per token that a method loses against dense attention.",
    ["model", "method"],
    buckets=(-1, -0.1, -0.01, 0, *_NATS),
)
FIDELITY_HELD = Gauge(
    "fovea_fidelity_held_back",
    "Variants of a method (its knobs, plan and budget) that dense serves in place of.",
    ["model", "method"],
)


def observe_fidelity(method: str, kl: float, agreement: float, delta: float) -> None:
    """Record how one answer under an attention method compares with dense attention on the same tokens.

    `kl` is KL(dense ‖ method), mean nats per token; `agreement` the share of tokens on which both find the same one
    likeliest; `delta` the log-likelihood that the method loses, nats per token.
    """
    labels = (context().model, method)
    FIDELITY_KL.labels(*labels).observe(kl)
    FIDELITY_TOP1.labels(*labels).observe(agreement)
    FIDELITY_DELTA.labels(*labels).observe(delta)


def held_back(method: str, variants: int) -> None:
    """Record how many variants of an attention method dense serves in place of."""
    FIDELITY_HELD.labels(context().model, method).set(variants)
