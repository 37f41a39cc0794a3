"""What the sparsity claims of Landmark and Routing rest on: keys really read, time against dense attention, recall.

The shipped weights, token by token. Dense is the same network with its queries, keys and values in torch's own
attention over all keys: the best dense kernel there is for it here. CPU time of one thread; both take turns. Recall is
Landmark's, by where the asked pair stands.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fovea_memory.mixers.rope import rotate_pairs
from fovea_recipes.llm_longctx.landmark_recall import STREAM_CHUNK, with_landmarks
from fovea_recipes.llm_longctx.recall import RecallBatch, draw
from fovea_recipes.training.text_corpus import corpus
from loadtests.bench.claiming import Claims, open_shipped, timing
from loadtests.bench.result import Row, row
from loadtests.bench.turns import milliseconds, threads
from shared.registry.weights import Manifest

RUNS, TOKENS, BLOCKS = 40, 8192, 2
RECALLED, ROWS = 1024, 48
PARTS = 3
"""Thirds of a text for which recall is reported."""

_Layer = tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def measure(rounds: int = RUNS, count: int = TOKENS) -> Claims:
    """Claims' facts; `rounds` steps each, Landmark's behind `count` tokens."""
    with threads(1), torch.inference_mode():
        made = [_landmark(rounds, count), _routing(rounds)]
    return Claims(
        suite="sparsity_mixers",
        title="What the claims of Landmark and Routing rest on",
        baseline="dense attention",
        how=f"decode steps in float32, CPU time of one thread, {rounds} in turn; Landmark behind {count:,} tokens "
        f"through {BLOCKS} blocks, Routing at the end of its context; recall in {RECALLED:,} tokens",
        rows=[one for _, _, rows in made for one in rows],
        claims={name: facts for name, facts, _ in made},
    )


def _landmark(rounds: int, count: int) -> tuple[str, dict[str, Any], list[Row]]:
    net, manifest = open_shipped("fovea-landmark-recall")
    session, ids = net.session(1, blocks=BLOCKS), draw(np.random.default_rng(1), 1, count).ids
    for part in torch.split(ids[:, :count], STREAM_CHUNK, 1):
        session.feed(part)
    layers = [(block.project, block.output, block.feed) for block in net.layers]
    dense = _Dense(layers, net.embed, net.logits, ids[:, :count])
    token = ids[:, :1]
    taken = milliseconds(
        {"dense": lambda: dense.step(token), "ours": lambda: session.feed(token)}, rounds, 1, time.process_time
    )
    # A step scores every landmark, and reads its blocks and what is open; a landmark is one key of L + 1.
    stored, size = session.num_blocks, net.block + 1
    read = (stored + BLOCKS * net.block + size / 2) / (stored * size + size / 2)
    drawn = draw(np.random.default_rng(7), ROWS, RECALLED - 12)
    score, dense_score = (_by_thirds(way(net, drawn), drawn) for way in (_streamed, _at_once))
    facts = {
        "sparsity_by_layer": {f"transformer.h.{i}.attn": round(1 - read, 6) for i in range(len(net.layers))},
        "theoretical_flops_ratio": round(read, 6),
        "measured": _timed(taken, net, session.nbytes, count, "landmark session", BLOCKS),
        "retrieval": {
            "depths": [round((part + 0.5) / PARTS, 3) for part in range(PARTS)],
            "score": statistics.fmean(score),
            "dense_score": statistics.fmean(dense_score),
        },
        "quality": _quality(manifest, "recall_1024_k2", "recall_1024"),
    }
    note = f"reads {read:.3f} of the keys; recall by thirds {_shown(score)}, of all blocks {_shown(dense_score)}"
    return manifest.name, facts, _rows("Landmark", taken, note)


def _routing(rounds: int) -> tuple[str, dict[str, Any], list[Row]]:
    net, manifest = open_shipped("fovea-routing-bytes")
    ids = corpus("test").windows(1, net.context)
    read = net.context - rounds - 1
    session = net.session(1)
    session.feed(ids[:, :read])
    layers = [_all_keys(*block) for block in net.blocks]
    dense = _Dense(layers, net.token_emb, net.logits, ids[:, :read])
    own, other = iter(torch.split(ids[:, read:], 1, 1)), iter(torch.split(ids[:, read:], 1, 1))
    contenders: dict[str, Callable[[], object]] = {
        "dense": lambda: dense.step(next(other)),
        "ours": lambda: session.feed(next(own)),
    }
    taken = milliseconds(contenders, rounds, 1, time.process_time)
    shares = [1 - part for part in _keys_read(net, ids, read)]
    facts = {
        "sparsity_by_layer": {f"layers.{i}.attn": round(share, 6) for i, share in enumerate(shares)},
        "theoretical_flops_ratio": round(1 - statistics.fmean(shares), 6),
        "measured": _timed(taken, net, session.nbytes, net.context, "routing session", net.blocks[0][1].window),
        "quality": _quality(manifest, "bits_teacher_forced", None),
    }
    return manifest.name, facts, _rows("Routing", taken, f"reads {1 - statistics.fmean(shares):.2f} of the keys")


class _Dense:
    """A network token by token with attention over all keys, which are kept as they are turned.

    Args:
        layers: Per layer q, k, v [B,T,h,d] of x; what mixed values [B,T,h,d] add; what the feed-forward adds.
        embed, finish: Ids → x, x → logits.
        ids: Tokens that have been read [1,T].
    """

    def __init__(self, layers: list[_Layer], embed: Any, finish: Any, ids: Tensor) -> None:
        self.layers, self.embed, self.finish, self.index = layers, embed, finish, 0
        self.kept: list[list[Tensor]] = []
        self.step(ids)

    def step(self, ids: Tensor) -> Tensor:
        """Logits of further ids."""
        x, at = self.embed(ids), torch.arange(self.index, self.index + ids.shape[1])
        for number, (project, output, feed) in enumerate(self.layers):
            q, k, v = (part.transpose(1, 2) for part in project(x))
            q, k = rotate_pairs(q, at), rotate_pairs(k, at)
            if self.index:
                k, v = (torch.cat(pair, 2) for pair in zip(self.kept[number], (k, v), strict=True))
                self.kept[number] = [k, v]
            else:
                self.kept.append([k, v])
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=not self.index)
            x = x + output(mixed.transpose(1, 2))
            x = x + feed(x)
        self.index += ids.shape[1]
        logits: Tensor = self.finish(x[:, -1:])
        return logits


def _all_keys(norm: Any, attention: Any, second: Any, feed: Any) -> _Layer:
    """A routing layer whose heads all see all keys."""

    def project(x: Tensor) -> list[Tensor]:
        z = norm(x)
        ways = [attention.local_qkv, *([attention.routing_qkv] if attention.routes else [])]
        return [torch.cat(parts, 1).transpose(1, 2) for parts in zip(*(way(z) for way in ways), strict=True)]

    return project, lambda z: attention.to_out(z.flatten(2)), lambda x: feed(second(x))


def _keys_read(net: Any, ids: Tensor, begin: int) -> list[float]:
    """Share of all keys that tokens from `begin` on read, per layer, mean over heads."""
    found, at = [], torch.arange(1, ids.shape[1] + 1).double()
    for chosen, (_, attention, _, _) in zip(net.forward_with_assignments(ids)[2], net.blocks, strict=True):
        block = attention.local_window
        near = (at - 1) % block + 1 + block * (at > block)
        heads = [near.expand(attention.local_heads, -1)]
        if chosen is not None:
            count = functional.one_hot(chosen.clusters, attention.means.shape[1]).cumsum(2)
            there = count.gather(3, chosen.clusters[..., None])[..., 0].clamp(max=attention.window)
            heads.append(there[0].double())
        found.append(float((torch.cat(heads) / at)[:, begin:].mean()))
    return found


def _streamed(net: Any, drawn: RecallBatch) -> Tensor:
    """Answers [B,A] of streams that are read in chunks through the best blocks."""
    session = net.session(len(drawn.ids), blocks=BLOCKS)
    logits = torch.cat([session.feed(part).logits for part in torch.split(drawn.ids, STREAM_CHUNK, 1)], 1)
    return logits[:, drawn.answers - 1].argmax(-1)


def _at_once(net: Any, drawn: RecallBatch) -> Tensor:
    """Answers [B,A] where every token reads every block."""
    before = drawn.answers - 1
    at = before + before // net.block
    return torch.cat([net(with_landmarks(part, net.block))[:, at].argmax(-1) for part in torch.split(drawn.ids, 4)])


def _by_thirds(answers: Tensor, drawn: RecallBatch) -> list[float]:
    """Recall by the third of the text in which the asked pair stands."""
    right, third = answers == drawn.expected, PARTS * drawn.written // (RECALLED - 12)
    return [float(right[third == part].double().mean()) for part in range(PARTS)]


def _timed(taken: dict[str, list[float]], net: Any, held: int, tokens: int, kernel: str, knob: int) -> dict[str, Any]:
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    return timing(
        taken["ours"],
        taken["dense"],
        batch=1,
        sequence=tokens,
        dtype="float32",
        kernel=f"torch, {kernel} ({knob})",
        dense_kernel="torch scaled_dot_product_attention over all keys",
        peak_memory_bytes=weights + held,
        kv_bytes_per_token=held / tokens,
        offload_bytes_per_token=0,
    )


def _quality(manifest: Manifest, metric: str, plain: str | None) -> dict[str, Any]:
    """The manifest's figures, mean over the seeds that it names; the twin is a dense model of equal parameters."""
    seeds = [manifest.metrics, *(facts for name, facts in manifest.notes.items() if name.startswith("seed_"))]
    twins = [facts for name, facts in manifest.notes.items() if name.startswith("plain_twin")]
    dense = statistics.fmean(twin[plain] for twin in twins) if plain is not None and twins else None
    value = statistics.fmean(found[metric] for found in seeds)
    return {"metric": metric, "value": value, "dense_same_parameters": dense, "seeds": len(seeds)}


def _rows(name: str, taken: dict[str, list[float]], note: str) -> list[Row]:
    base = statistics.median(taken["dense"])
    return [row(f"dense beside {name}", "CPU ms", taken["dense"], base), row(name, "CPU ms", taken["ours"], base, note)]


def _shown(shares: list[float]) -> str:
    return " ".join(f"{share:.2f}" for share in shares)
