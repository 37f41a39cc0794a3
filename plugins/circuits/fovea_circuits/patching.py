"""Causal measurements of heads: path patching, activation patching, attribution, ablation; functions of a decoder.

"Interpretability in the Wild" (2022) and "Circuit Component Reuse Across Tasks" (2024). Everything is equal, up to
float32 rounding, to whole forwards with edits; lower layers are reused and heads go on the batch axis. Knows no task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fovea.errors import InvalidOption
from fovea_circuits.activation_cache import ActivationCache, final_norm, run_with_cache
from shared.lm.attention import causal_mask
from shared.lm.config import DecoderConfig
from shared.lm.decoder import Decoder
from shared.lm.host_transfer import take_rows, to_device
from shared.lm.taps import trace

Positions = Literal["all"] | int | Sequence[int]
Receiver = tuple[int, str, int]
"""(layer, `q`, `k` or `v`, head); keys and values are named by their group."""

AblationKind = Literal["zero", "uniform", "mean", "resample"]

MAX_FORWARD_BYTES = 256 * 2**20
"""Default bound on variants·B·T·D·4 bytes of one forward."""

MIN_SPAN = 1e-6
"""Difference between clean and corrupt logit differences below which an effect has no meaning."""


@dataclass(frozen=True, slots=True)
class PathPatchResult:
    """Effect of each sender on the answer through the receivers.

    Attributes:
        clean, corrupt: Logit differences of the two runs.
        patched: With the sender's path corrupt [L,H]; NaN where there is no path.
        effect: (patched − clean) / (corrupt − clean); NaN also where that is undefined. May lie outside 0…1.
    """

    clean: float
    corrupt: float
    patched: np.ndarray
    effect: np.ndarray


def logit_difference(last_logits: Tensor, answers: Tensor) -> float:
    """Return the mean of logit[correct] − logit[wrong]: logits [B,V], answers [B,2], or [B,1+w] for w wrong ones."""
    return float(logit_differences(last_logits, answers).double().mean())


def logit_differences(last: Tensor, answers: Tensor) -> Tensor:
    """Return logit[correct] − mean logit[wrong] per prompt: last [B,V], answers [B,1+w] → [B]."""
    chosen = last.gather(-1, answers)
    return chosen[:, 0] - chosen[:, 1:].mean(-1)


def path_patch(
    model: Decoder,
    clean: Tensor,
    corrupt: Tensor,
    answers: Tensor,
    *,
    receivers: Literal["final"] | Sequence[Receiver] = "final",
    positions: Positions = "all",
    freeze_mlps: bool = False,
    batch: int | None = None,
) -> PathPatchResult:
    """Measure the effect of every head on the answer through the receivers alone (section 2).

    Prompts and counterfactuals are [B,T], `answers` [B,2] the correct and the wrong token. Receivers are the residual
    stream before the final norm, or queries, keys and values of heads. Senders are corrupted, and receivers read, at
    `positions`; `freeze_mlps` keeps MLP outputs clean, so that only direct paths count. A forward has `batch` senders;
    by default it stays below 256 MiB. Raises InvalidOption if a receiver or position does not exist.
    """
    runs = run_with_cache(model, clean), run_with_cache(model, corrupt)
    how: Any = {"receivers": receivers, "positions": positions, "freeze_mlps": freeze_mlps, "batch": batch}
    return patch_paths(*runs, answers, **how)


@torch.no_grad()
def patch_paths(
    clean: ActivationCache,
    corrupt: ActivationCache,
    answers: Tensor,
    *,
    receivers: Literal["final"] | Sequence[Receiver] = "final",
    positions: Positions = "all",
    freeze_mlps: bool = False,
    batch: int | None = None,
    senders: range | None = None,
) -> PathPatchResult:
    """Path patching on cached runs, for all senders or those of some layers."""
    where = _resolve_positions(positions, clean.ids.shape[1])
    if receivers != "final":
        check_receivers(receivers, clean.model.config)
    top = clean.layers if receivers == "final" else min(layer for layer, _, _ in receivers)
    patched = np.full((clean.layers, clean.heads), np.nan)
    for layer, heads in _head_batches(clean, batch, range(top) if senders is None else senders):
        wanted = {clean.layers} if receivers == "final" else {l for l, _, _ in receivers}
        arrived = _propagate_to_receivers(clean, corrupt, layer, heads, where, wanted, freeze_mlps=freeze_mlps)
        logits = _run_receivers(clean, arrived, receivers, where, len(heads))
        patched[layer, heads] = _mean_differences(logits, answers, len(heads))
    low, high = logit_difference(clean.last, answers), logit_difference(corrupt.last, answers)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = (patched - low) / (high - low) if abs(high - low) >= MIN_SPAN else np.full_like(patched, np.nan)
    return PathPatchResult(low, high, patched, effect)


def _propagate_to_receivers(
    clean: ActivationCache,
    corrupt: ActivationCache,
    layer: int,
    heads: list[int],
    where: list[int],
    wanted: set[int],
    *,
    freeze_mlps: bool,
) -> dict[int, Tensor]:
    """Wanted layer → residual stream that reaches it at the given positions, per sender: [n·B,P,D].

    All corrupt heads are frozen at these positions, so nothing moves between positions: only MLPs have to be clean, and
    with frozen MLPs not even those.
    """
    x = take_rows(clean.swap_heads(layer, heads, corrupt.z[layer], where), where, 1)
    arrived: dict[int, Tensor] = {}
    for l in range(layer, max(wanted)):
        if l > layer:
            x = x + clean.repeat_rows(take_rows(clean.attn[l], where, 1), len(heads))
        fed = take_rows(clean.mlp[l], where, 1)
        x = x + (clean.repeat_rows(fed, len(heads)) if freeze_mlps else clean.model.blocks[l].feed(x))
        if l + 1 in wanted:
            arrived[l + 1] = x
    return arrived


def _run_receivers(
    clean: ActivationCache,
    arrived: dict[int, Tensor],
    receivers: Literal["final"] | Sequence[Receiver],
    where: list[int],
    n: int,
) -> Tensor:
    """Last logits [n·B,V] where only the receivers' inputs come from the stream that arrived."""
    if receivers == "final":
        last = clean.ids.shape[1] - 1
        if last not in where:
            return clean.repeat_rows(clean.last, n)
        return clean.to_logits(arrived[clean.layers][:, where.index(last)])
    inputs = {l: dict(zip("qkv", clean.model.blocks[l].project(x), strict=True)) for l, x in arrived.items()}

    def edit_receivers(layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = {"q": q, "k": k, "v": v}
        for _, part, head in (r for r in receivers if r[0] == layer):
            parts[part] = parts[part].clone()
            at = to_device(where, parts[part].device, torch.long)
            parts[part][:, :, head].index_copy_(1, at, inputs[layer][part][:, :, head])
        return parts["q"], parts["k"], parts["v"]

    lowest = min(inputs)
    return clean.run_from(lowest, clean.repeat_rows(clean.pre[lowest], n).contiguous(), edit_receivers)


def activation_patch(
    model: Decoder,
    clean: Tensor,
    corrupt: Tensor,
    answers: Tensor,
    *,
    positions: Positions = "all",
    denoise: bool = False,
    batch: int | None = None,
) -> np.ndarray:
    """Return the logit difference with one head's mixed values from the other run, everything else free: [L,H].

    `denoise` puts clean values into the corrupt run instead.
    """
    run, other = run_with_cache(model, clean), run_with_cache(model, corrupt)
    if denoise:
        run, other = other, run
    return patch_heads(run, other.z, answers, positions=positions, batch=batch)


@torch.no_grad()
def patch_heads(
    run: ActivationCache,
    z: Sequence[Tensor],
    answers: Tensor,
    *,
    positions: Positions = "all",
    batch: int | None = None,
    senders: range | None = None,
) -> np.ndarray:
    """Return the logit difference with each head in turn mixing `z` [L][B,T,H,d] instead of its own: [L,H]."""
    where = _resolve_positions(positions, run.ids.shape[1])
    patched = np.full((run.layers, run.heads), np.nan)
    for layer, heads in _head_batches(run, batch, senders or range(run.layers)):
        logits = run.run_from_mid(layer, run.swap_heads(layer, heads, z[layer], where))
        patched[layer, heads] = _mean_differences(logits, answers, len(heads))
    return patched


def attribution_patch(
    model: Decoder, clean: Tensor, corrupt: Tensor, answers: Tensor, *, positions: Positions = "all"
) -> np.ndarray:
    """Estimate to first order what activation patching changes, (z' − z)·∂LD/∂z from one backward: [L,H]."""
    where = _resolve_positions(positions, clean.shape[1])
    names = [f"z.{l}" for l in range(model.config.layers)]
    other = trace(model, corrupt, capture=names, keep=1)
    run = trace(model, clean, capture=names, keep=1, grad=True)
    total = logit_differences(run.logits[:, -1], answers).mean()
    gradients = torch.autograd.grad(total, [run[name] for name in names])
    moved = [(other[n] - run[n].detach()) * g for n, g in zip(names, gradients, strict=True)]
    return torch.stack([take_rows(one, where, 1).sum((0, 1, 3)) for one in moved]).double().cpu().numpy()


def ablate(
    model: Decoder,
    ids: Tensor,
    answers: Tensor,
    *,
    kind: AblationKind = "zero",
    seed: int = 0,
    batch: int | None = None,
) -> np.ndarray:
    """Return the logit difference with one head at a time ablated at all positions: [L,H].

    Kinds are `zero`, `uniform` attention, `mean` over the batch at the same position (for aligned templates), and
    `resample` from another prompt by the seed (without one: InvalidOption). `answers` [B,2] are the correct and the
    wrong token.
    """
    run = run_with_cache(model, ids)
    return patch_heads(run, ablation_values(run, kind, seed), answers, batch=batch)


def ablation_values(run: ActivationCache, kind: AblationKind, seed: int = 0) -> list[Tensor]:
    """Return what all heads mix under an ablation, [L][B,T,H,d]."""
    if kind == "zero":
        return [torch.zeros_like(z) for z in run.z]
    if kind == "mean":
        return [z.mean(0, keepdim=True).expand_as(z) for z in run.z]
    if kind == "resample":
        if (B := run.ids.shape[0]) < 2:
            raise InvalidOption("resample takes values of another prompt, and there is one only.", field="kind")
        order = np.random.default_rng(seed).permutation(B)
        other = torch.from_numpy(order[np.argsort(np.roll(order, 1))])  # the next in that order, never the same
        return [z[other] for z in run.z]
    at, shares = torch.arange(run.ids.shape[1], device=run.ids.device), run.heads // run.v[0].shape[2]
    mixed = []
    for v, window in zip(run.v, run.model.config.windows or [None] * run.layers, strict=True):
        seen = causal_mask(at, len(at), None, window).to(v.dtype)
        rows = seen / seen.sum(-1, keepdim=True)
        mixed.append(torch.einsum("ts,bsgd->btgd", rows, v).repeat_interleave(shares, 2))
    return mixed


@dataclass(frozen=True, slots=True)
class Attribution:
    """The logit difference as a sum, exact with the final norm frozen.

    Attributes:
        heads: [L,H].
        mlps: [L].
        embedding: Of the tokens (and positions) themselves.
        biases: Of attention outputs and the final norm; MLP biases are in `mlps`.
        total: Sum of all of them.
        actual: The logit difference itself.
    """

    heads: np.ndarray
    mlps: np.ndarray
    embedding: float
    biases: float
    actual: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return float(self.heads.sum() + self.mlps.sum() + self.embedding + self.biases)


def direct_logit_attribution(model: Decoder, ids: Tensor, answers: Tensor, *, position: int = -1) -> np.ndarray:
    """Return what each head writes straight towards the right answer at a position, mean over prompts: [L,H]."""
    return attribute_logits(run_with_cache(model, ids), answers, position=position).heads


@torch.no_grad()
def attribute_logits(run: ActivationCache, answers: Tensor, *, position: int = -1) -> Attribution:
    """Split the logit difference at a position into its parts, with the final norm frozen."""
    norm: Any = final_norm(run.model)
    matrix, gpt2 = run.model.output_matrix, run.model.config.path == "gpt2"
    whole = run.final[:, position]
    spread = whole.var(-1, unbiased=False, keepdim=True) if gpt2 else (whole**2).mean(-1, keepdim=True)
    scale = (getattr(norm, "offset", 0.0) + norm.weight) / (spread + run.model.config.norm_eps).sqrt()
    direction = matrix[answers[:, 0]] - matrix[answers[:, 1:]].mean(1)

    def towards(y: Tensor) -> Tensor:  # y [B,D] or [B,n,D] → mean over prompts
        centred = y - y.mean(-1, keepdim=True) if gpt2 else y
        along = direction * scale
        total: Tensor = (centred * (along if y.dim() == 2 else along[:, None])).sum(-1).double().mean(0)
        return total

    heads, mlps, biases = [], [], torch.zeros((), dtype=torch.float64)
    for l in range(run.layers):
        z = run.z[l][:, position]
        alone = torch.diag_embed(torch.ones(run.heads, dtype=z.dtype, device=z.device))[None, :, :, None] * z[:, None]
        heads.append(towards(run.project_heads(l, alone, position)))
        mlps.append(towards(run.mlp[l][:, position]))
        biases = biases + towards(run.attn[l][:, position] - run.project_heads(l, z, position)).cpu()
    if gpt2:
        biases = biases + (direction * norm.bias).sum(-1).double().mean().cpu()
    logits = run.to_logits(whole)
    return Attribution(
        torch.stack(heads).cpu().numpy(),
        torch.stack(mlps).cpu().numpy(),
        float(towards(run.pre[0][:, position])),
        float(biases),
        logit_difference(logits, answers),
    )


def _head_batches(run: ActivationCache, batch: int | None, layers: range) -> Iterator[tuple[int, list[int]]]:
    """Heads of one layer at a time, at most `batch` of them."""
    B, T, D = run.pre[0].shape
    size = batch or max(1, MAX_FORWARD_BYTES // (B * T * D * 4))
    for layer in layers:
        for start in range(0, run.heads, size):
            yield layer, list(range(start, min(start + size, run.heads)))


def _mean_differences(logits: Tensor, answers: Tensor, n: int) -> np.ndarray:
    """Mean logit difference of each of n variants: logits [n·B,V] → [n]."""
    return logit_differences(logits, answers.repeat(n, 1)).double().view(n, -1).mean(1).cpu().numpy()


def _resolve_positions(positions: Positions, T: int) -> list[int]:
    if positions == "all":
        return list(range(T))
    indices = [positions] if isinstance(positions, int) else [int(p) for p in positions]
    if wrong := [p for p in indices if not -T <= p < T]:
        detail = f"There is no position {wrong[0]}; the prompts have positions 0…{T - 1}."
        raise InvalidOption(detail, field="positions")
    return sorted({p % T for p in indices})


def check_receivers(receivers: Sequence[Receiver], config: DecoderConfig) -> None:
    """Refuse receivers that the model does not have, or an empty list: InvalidOption."""
    sizes = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    for layer, part, head in receivers:
        if not 0 <= layer < config.layers or not 0 <= head < sizes.get(part, 0):
            known = f"q has heads 0…{config.heads - 1}, k and v have groups 0…{config.kv_heads - 1}"
            detail = f"There is no receiver {[layer, part, head]}; layers are 0…{config.layers - 1}, {known}."
            raise InvalidOption(detail, field="receivers")
    if not receivers:
        detail = "receivers is empty."
        raise InvalidOption(detail, hint="Name heads as [layer, q|k|v, head], or final.", field="receivers")
