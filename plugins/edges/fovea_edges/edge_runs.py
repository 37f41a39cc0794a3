"""Runs of a decoder over its edge graph: every input gets a sum of its own, so that single edges can be cut or blamed.

A plain run returns what each source writes. A circuit keeps some edges; all others carry what they carried in a run on
the counterfactual. With all edges it is the plain run, with none the counterfactual's. Knows no task and no search.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from fovea_circuits.activation_cache import final_norm, norm_after_heads, output_weight, project_values, scale_of_norm
from fovea_edges.edge_graph import EdgeGraph
from shared.lm.attention import DenseAttention
from shared.lm.blocks import GPT2Block
from shared.lm.decoder import Decoder
from shared.lm.rope import Rotation
from shared.lm.taps import trace


@dataclass(frozen=True)
class EdgeRun:
    """One run of ids [B,T].

    Attributes:
        last: Logits of the last position [B,V].
        written: Contribution of each source to the residual stream [S,B,T,D]; biases belong to no source.
        inputs: Residual stream at each layer's attention and MLP, then at the answer: 2·L + 1 of [B,T,D].
    """

    last: Tensor
    written: Tensor = field(repr=False)
    inputs: list[Tensor] = field(repr=False)


@dataclass(frozen=True)
class InputSums:
    """Inputs of targets, given per layer the residual stream x [B,T,D] of a plain run.

    Attributes:
        attention: `attention(layer, x) -> [P,B,T,D]`.
        mlp: `mlp(layer, x) -> [B,T,D]`.
        answer: `answer(x) -> [B,T,D]`.
    """

    attention: Callable[[int, Tensor], Tensor]
    mlp: Callable[[int, Tensor], Tensor]
    answer: Callable[[Tensor], Tensor]


def embed(model: Decoder, ids: Tensor) -> Tensor:
    """Return what the first block gets for ids [B,T]: [B,T,D]."""
    return trace(model, ids, capture=["embed"], keep=1)["embed"]


@torch.no_grad()
def run_edges(model: Decoder, ids: Tensor) -> EdgeRun:
    """Run ids [B,T] plainly, and return what every source writes and every target reads."""
    return run_embedding(model, embed(model, ids))


@torch.no_grad()
def run_embedding(model: Decoder, x: Tensor) -> EdgeRun:
    """Run what the first block gets, x [B,T,D]; see `run_edges`."""
    graph = EdgeGraph(model.config)
    written = x.new_zeros(len(graph.sources), *x.shape)
    written[0] = x
    inputs: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        inputs.append(x)
        return x

    sums = InputSums(lambda _, x: keep(x)[None], lambda _, x: keep(x), keep)
    last = run_sums(model, x, sums, lambda index, y: written[index].copy_(y))
    return EdgeRun(last, written, inputs)


@torch.no_grad()
def run_circuit(model: Decoder, clean: EdgeRun, corrupt: EdgeRun, mask: Tensor) -> Tensor:
    """Return the last logits [B,V] of a circuit, bool [R,S]: other edges carry what they carry in the corrupt run."""
    graph = EdgeGraph(model.config)
    change = torch.zeros_like(clean.written)  # of each source, against the corrupt run
    change[0] = clean.written[0] - corrupt.written[0]
    weights = mask.to(change)

    def add(rows: Any, stream: Tensor, below: int) -> Tensor:
        moved = weights[rows, :below] @ change[:below].flatten(1)
        return stream + moved.view(*moved.shape[:-1], *stream.shape)

    sums = InputSums(
        lambda l, _: add(graph.attention_rows(l), corrupt.inputs[2 * l], 1 + l * graph.written),
        lambda l, _: add(graph.mlp_row(l), corrupt.inputs[2 * l + 1], 1 + l * graph.written + model.config.heads),
        lambda _: add(-1, corrupt.inputs[-1], len(graph.sources)),
    )

    def keep(index: slice | int, y: Tensor) -> None:
        change[index] = y - corrupt.written[index]

    return run_sums(model, clean.written[0], sums, keep)


def run_sums(
    model: Decoder, x: Tensor, sums: InputSums, keep: Callable[[slice | int, Tensor], Any] | None = None
) -> Tensor:
    """Run the blocks on an embedding x [B,T,D], each input taken from `sums`; return the last logits [B,V].

    `keep(sources, y)` is given what sources write, as they are computed.
    """
    graph, attend = EdgeGraph(model.config), DenseAttention(windows=model.config.windows)
    turns = model.rotations(torch.arange(x.shape[1], device=x.device), x.dtype)
    for l, block in enumerate(model.blocks):
        q, k, v = _project_parts(model, l, sums.attention(l, x), turns[l])
        z = attend(l, q, k, v, 0)
        first = 1 + l * graph.written
        if keep is not None:
            keep(slice(first, first + model.config.heads), _write_heads(model, l, z))
        x = x + block.output(z)
        y = block.feed(sums.mlp(l, x))
        if keep is not None:
            keep(first + model.config.heads, y)
        x = x + y
    stream = sums.answer(x)[:, -1]
    return functional.linear(final_norm(model)(stream), model.output_matrix)


def _project_parts(model: Decoder, layer: int, x: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
    """Project an input of its own for each part, x [P,B,T,D] (or one for all, [1,B,T,D]), to rotated q, k and v."""
    block, config = model.blocks[layer], model.config
    if len(x) == 1:
        q, k, v = block.project(x[0])
        return *block.apply_positions(q, k, turn), v
    inner = cast("Any", block)
    if isinstance(block, GPT2Block):
        normed, matrix, bias = inner.ln_1(x), inner.attn.c_attn.weight.t(), inner.attn.c_attn.bias
    else:
        own = [getattr(inner.self_attn, f"{name}_proj") for name in "qkv"]
        normed, matrix = inner.input_layernorm(x), torch.cat([part.weight for part in own])
        bias = None if own[0].bias is None else torch.cat([part.bias for part in own])
    parts = torch.einsum("pbtd,pcd->btpc", normed, matrix.view(len(x), config.head_dim, -1))
    if bias is not None:
        parts = parts + bias.view(len(x), -1)
    q, k, v = torch.split(parts, [config.heads, config.kv_heads, config.kv_heads], 2)
    return *block.apply_positions(q, k, turn), v


def _write_heads(model: Decoder, layer: int, z: Tensor) -> Tensor:
    """Contribution of each head: z [B,T,H,d] → [H,B,T,D]; a norm after the heads scales them as it does their sum."""
    weight = output_weight(model, layer).reshape(-1, *z.shape[-2:])
    alone = torch.einsum("bthc,dhc->hbtd", z, weight)
    norm = norm_after_heads(model, layer)
    return alone if norm is None else alone * scale_of_norm(norm, project_values(model, layer, z))
