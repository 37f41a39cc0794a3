"""Bytes of keys and values that are really allocated, against each method's formula and against dense.

A small model with SmolLM2's head width and a long context, random weights: bytes do not depend on what weights say.
"""

import torch

from loadtests.bench.longctx import read
from loadtests.bench.result import Row, Table
from loadtests.bench.turns import threads
from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import AttentionMethod, method
from shared.lm.builders import llama

LAYERS, HEADS, D, PAGE = 5, 4, 64, 16
N = LAYERS * HEADS
"""Key/value heads of the model."""


def measure(rounds: int = 1, count: int = 32768) -> Table:  # noqa: ARG001  # bytes are the same every round
    """Duo with half of the heads full at 8k, and Razor with 15 % full at `count` tokens, far beyond its window."""
    torch.manual_seed(0)
    net = llama(
        vocab=64, width=HEADS * D, layers=LAYERS, heads=HEADS, kv_heads=HEADS, hidden=64, positions=2 * count, tied=True
    ).eval()
    duo, razor = method("duo", roles=full(N // 2)), method("razor", roles=full(3), window_min=256)
    cases = {
        "duo, half of the heads full": (duo, 8192, N // 2, 64 + 256, 0.52),
        "razor, 15 % of the heads full": (razor, count, 3, 4 + count // 5 + 1, 0.32),
    }
    rows: list[Row] = []
    targets: dict[str, tuple[float, float]] = {}
    with threads(), torch.inference_mode():
        for name, (how, tokens, whole, kept, wanted) in cases.items():
            formula, dense = whole * tokens + (N - whole) * min(tokens, kept), N * tokens
            held = held_entries(net, how, tokens)
            note = f"{tokens:,} tokens; formula {formula / dense:.4f}; {held - formula:,} entries above it"
            rows.append(Row(name, "of dense", held / dense, held / dense, held / dense, held / dense, note))
            targets[f"{name}: share of dense (at most)"] = (held / dense, wanted + PAGE / tokens)
            targets[f"{name}: pages a head above the formula (at most)"] = ((held - formula) / PAGE / N, 1.0)
    how_told = f"pages of {PAGE} entries really held after reading, {N} key/value heads of {D}"
    return Table("longctx_memory", "Allocated bytes of keys and values", how_told, "dense", rows, targets)


def full(heads: int) -> tuple[tuple[int, ...], ...]:
    """Roles with so many full heads, spread over the layers."""
    return tuple(tuple(int(head * LAYERS + layer < heads) for head in range(HEADS)) for layer in range(LAYERS))


def held_entries(net: torch.nn.Module, how: AttentionMethod, tokens: int) -> int:
    """Entries that the pages hold after a prompt is read."""
    engine = Engine(net, page=PAGE)  # type: ignore[arg-type]
    s = engine.open(how)
    read(s, [i % 64 for i in range(tokens)], chunk=2048)
    held = engine.kv_bytes() * engine.pool.page // engine.pool.page_bytes
    s.close()
    return held
