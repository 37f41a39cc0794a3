"""The long-context engine as a whole: reading and decoding against transformers, memory by formula, the prefix cache.

A random model of SmolLM2's shape, the same weights on both sides; speed does not depend on what weights say. What is
compared takes turns within a round. CPU seconds, so that a shared machine's mood weighs less; `threads` of torch as set
outside. Methods need head plans: half of the key/value heads are full, evenly spread.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from loadtests.bench.result import Row, Table, row
from services.llm_longctx.engine import Engine, Request, Scheduler
from services.llm_longctx.engine.open_sequence import OpenSequence
from services.llm_longctx.methods import AttentionMethod, method
from shared.lm.decoder import Decoder
from shared.lm.networks import llama

LAYERS, HEADS, KV_HEADS, WIDTH, HIDDEN, VOCAB = 30, 9, 3, 576, 1536, 49152
ROLES = tuple(tuple((layer + head) % 2 for head in range(KV_HEADS)) for layer in range(LAYERS))
STEPS = 8


def measure(rounds: int = 3, count: int = 4096) -> Table:
    """Alternate all contenders at `count` tokens; medians over rounds."""
    taken: dict[str, list[float]] = defaultdict(list)
    notes: dict[str, str] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        theirs, ours = models(dtype)
        prompt = [(7 * i + i * i) % VOCAB for i in range(count)]
        for _ in range(rounds):
            _dense(taken, name, theirs, ours, prompt)
        _methods(taken, notes, name, ours, prompt, rounds)
        del theirs
        if dtype == torch.float32:
            _cache(taken, ours, prompt, rounds)
            _crowd(taken, ours, rounds)
    return _table(taken, notes, count)


def models(dtype: torch.dtype) -> tuple[Any, Decoder]:
    """Transformers' Llama with SDPA and ours, on the same random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415  # heavy, and only benches need it

    torch.manual_seed(0)
    facts: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        "tie_word_embeddings": True, "attn_implementation": "sdpa",
    }  # fmt: skip
    config = LlamaConfig(**facts)
    theirs: Any = LlamaForCausalLM(config)
    theirs = theirs.to(dtype).eval()
    ours = llama(
        vocab=VOCAB, width=WIDTH, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, hidden=HIDDEN, positions=8192,
        rope_theta=1e5, norm_eps=config.rms_norm_eps, tied=True,
    ).to(dtype).eval()  # fmt: skip
    ours.load_state_dict({k: x for k, x in theirs.state_dict().items() if k != "lm_head.weight"})
    return theirs, ours.requires_grad_(requires_grad=False)


def _cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


@torch.inference_mode()
def _dense(taken: dict[str, list[float]], name: str, theirs: Any, ours: Decoder, prompt: list[int]) -> None:
    """Reading a prompt for its last logits, and decoding after it: transformers, then ours."""
    ids = torch.tensor([prompt])
    seconds, first = _cpu(lambda: theirs(ids, logits_to_keep=1, use_cache=True))
    taken[f"prefill, transformers {name}"].append(seconds)
    cache = first.past_key_values
    seconds, _ = _cpu(lambda: [theirs(ids[:, i : i + 1], past_key_values=cache, use_cache=True) for i in range(STEPS)])
    taken[f"decode step, transformers {name}"].append(1000 * seconds / STEPS)
    engine = Engine(ours)
    s = engine.open()
    seconds, _ = _cpu(lambda: _read(s, prompt))
    taken[f"prefill, dense {name}"].append(seconds)
    seconds, _ = _cpu(partial(_step, s, prompt))
    taken[f"decode step, dense {name}"].append(1000 * seconds / STEPS)
    s.close()


def _read(s: OpenSequence, prompt: list[int]) -> None:
    """As the scheduler reads: chunks of 512, logits of the last token only."""
    s.prompt = len(prompt)
    s.reserve(len(prompt), 64)
    for begin in range(0, len(prompt), 512):
        last = begin + 512 >= len(prompt)
        s.read(prompt[begin : begin + 512], last=last, keep=int(last))


def _step(s: OpenSequence, tokens: list[int]) -> None:
    for token in tokens[:STEPS]:
        s.step(token)


def contenders() -> dict[str, AttentionMethod]:
    """The methods whose decoding or reading is compared."""
    return {
        "duo": method("duo", roles=ROLES), "razor": method("razor", roles=ROLES, window_min=512, window_div=16),
        "recycled": method("recycled", budget=2048, stride=50), "flexprefill": method("flexprefill", min_budget=512),
    }  # fmt: skip


@torch.inference_mode()
def _methods(
    taken: dict[str, list[float]], notes: dict[str, str], name: str, ours: Decoder, prompt: list[int], rounds: int
) -> None:
    engine = Engine(ours)
    open_ones = {}
    for label, how in contenders().items():
        s = open_ones[label] = engine.open(how)
        seconds, _ = _cpu(partial(_read, s, prompt))
        taken[f"prefill, {label} {name}"].append(seconds)
        share = s.kv_bytes() / engine.dense_bytes(len(prompt))
        density = statistics.mean(s.densities) if s.densities else 1.0
        notes[f"prefill, {label} {name}"] = f"KV {share:.3f} of dense, density {density:.2f}"
    for _ in range(rounds):
        for label, s in open_ones.items():
            seconds, _ = _cpu(partial(_step, s, prompt))
            taken[f"decode step, {label} {name}"].append(1000 * seconds / STEPS)
    for s in open_ones.values():
        s.close()


def _cache(taken: dict[str, list[float]], ours: Decoder, prompt: list[int], rounds: int) -> None:
    """The first token of a prompt that nobody has read, and of one that was read before."""
    for at in range(rounds):
        scheduler = Scheduler(Engine(ours))
        ids = [(token + at) % VOCAB for token in prompt]
        for label in ("first token, cold", "first token, cached"):
            order, _ = Request(ids, max_tokens=1).order(scheduler.engine)
            scheduler.submit(order)
            taken[label].append(_cpu(partial(_finish, scheduler))[0])
        scheduler.close()


def _finish(scheduler: Scheduler) -> None:
    while scheduler.in_flight:
        scheduler.step()


def _crowd(taken: dict[str, list[float]], ours: Decoder, rounds: int) -> None:
    """Eight requests of mixed methods together, and one after the other."""
    kinds: list[str | AttentionMethod] = [
        "dense",
        method("duo", roles=ROLES),
        method("recycled", budget=64, stride=16),
        "power",
    ]
    lengths = (64, 128, 192, 256, 320, 384, 448, 512)
    requests = [Request(list(range(1, n + 1)), kinds[i % 4], max_tokens=32) for i, n in enumerate(lengths)]
    for _ in range(rounds):
        seconds, together = _cpu(lambda: Engine(ours).generate(requests))
        taken["8 requests, together"].append(seconds)
        seconds, alone = _cpu(lambda: [Engine(ours).generate([one])[0] for one in requests])
        taken["8 requests, one by one"].append(seconds)
        if [a.tokens for a in together] != [a.tokens for a in alone]:
            taken["8 requests, answers that differ"].append(1.0)


def _table(taken: dict[str, list[float]], notes: dict[str, str], count: int) -> Table:
    middle = {name: statistics.median(values) for name, values in taken.items()}
    rows: list[Row] = []
    for name, values in taken.items():
        kind, _, who = name.partition(", ")
        dtype = who.rpartition(" ")[2]
        base = middle.get(f"{kind}, transformers {dtype}", middle[name])
        rows.append(row(name, "CPU ms" if kind == "decode step" else "CPU s", values, base, notes.get(name, "")))

    def ratio(slow: str, fast: str) -> float:
        return middle[slow] / middle[fast]

    targets = {
        "first token after a cached prefix, times sooner": (ratio("first token, cold", "first token, cached"), 20.0),
        "8 requests together, times the throughput of one by one": (
            ratio("8 requests, one by one", "8 requests, together"), 2.0,
        ),
    }  # fmt: skip
    for dtype, wanted in (("float32", 1.3), ("bfloat16", 2.0)):
        targets[f"dense prefill, times transformers, {dtype}"] = (
            ratio(f"prefill, transformers {dtype}", f"prefill, dense {dtype}"), 1.0,
        )  # fmt: skip
        targets[f"dense decode, times transformers, {dtype}"] = (
            ratio(f"decode step, transformers {dtype}", f"decode step, dense {dtype}"), wanted,
        )  # fmt: skip
    return Table(
        suite="longctx_engine", title=f"The long-context engine on {count:,} tokens", baseline="transformers",
        how=f"random weights of SmolLM2's shape, {torch.get_num_threads()} thread(s) of torch, CPU time; "
        "decode figures are per token", rows=rows, targets=targets,
    )  # fmt: skip
