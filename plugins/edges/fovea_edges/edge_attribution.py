"""Edge attribution with integrated gradients (EAP-IG), and exact patching of single edges as its reference.

"Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms" (2024), section 3: an edge's
score is (what its source writes in the corrupt run − in the clean run) · the gradient at its target's input, averaged
over `steps` embeddings between the corrupt prompt's and the clean one's. One step is EAP (2023), from the clean run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fovea_circuits.patching import logit_differences
from fovea_edges.edge_graph import EdgeGraph
from fovea_edges.edge_runs import EdgeRun, InputSums, run_circuit, run_sums
from shared.lm.decoder import Decoder

Metric = Literal["logit-difference", "kl"]
"""The metric that scores explain: right minus wrong answer, or the divergence from the clean run's prediction."""


def divergence(last: Tensor, clean: Tensor) -> Tensor:
    """Return KL(clean ‖ last) of the next-token distributions per prompt, in nats: logits [B,V] → [B]."""
    own, theirs = last.float().log_softmax(-1), clean.float().log_softmax(-1)
    return functional.kl_div(own, theirs, reduction="none", log_target=True).sum(-1)


@dataclass(frozen=True, slots=True)
class EdgeScores:
    """How the metric is estimated to change when edges are corrupted.

    Attributes:
        edges: [R,S], NaN where there is no edge.
        placed: Sum over the edges of each source, by position [S,T].
        entry: Edges of the embedding, by position [R,T].
    """

    edges: np.ndarray
    placed: np.ndarray
    entry: np.ndarray


def attribute_edges(
    model: Decoder,
    clean: EdgeRun,
    corrupt: EdgeRun,
    answers: Tensor,
    *,
    steps: int = 5,
    metric: Metric = "logit-difference",
) -> EdgeScores:
    """Estimate how the metric, mean over prompts, changes when an edge is corrupted; scores are sums over positions.

    `clean` ran the prompts [B,T] and `corrupt` their counterfactuals; `answers` [B,1+w] are the correct token and wrong
    ones. The integral has `steps` points; 1 is EAP at the clean run.
    """
    graph = EdgeGraph(model.config)
    moved = corrupt.written - clean.written
    scores = torch.full((len(graph.targets), len(graph.sources)), torch.nan, dtype=torch.float64)
    placed = torch.zeros(len(graph.sources), moved.shape[2], dtype=torch.float64)
    entry = torch.zeros(len(graph.targets), moved.shape[2], dtype=torch.float64)
    for rows, below, gradient in _integrate(model, clean, corrupt, answers, steps, metric):
        products = moved[:below].flatten(1) @ gradient.flatten(1).t()
        scores[rows, :below] = products.t().double().cpu()
        placed[:below] += torch.einsum("sbtd,btd->st", moved[:below], gradient.sum(0)).double().cpu()
        entry[rows] = torch.einsum("btd,pbtd->pt", moved[0], gradient).double().cpu()
    return EdgeScores(scores.numpy(), placed.numpy(), entry.numpy())


def _integrate(
    model: Decoder, clean: EdgeRun, corrupt: EdgeRun, answers: Tensor, steps: int, metric: Metric
) -> list[tuple[slice, int, Tensor]]:
    """Mean gradients at all targets: (rows, how many sources they read, [rows,B,T,D])."""
    graph = EdgeGraph(model.config)
    spans: list[tuple[slice, int]] = []
    for l in range(model.config.layers):
        spans += [(graph.attention_rows(l), 1 + l * graph.written)]
        spans += [(slice(graph.mlp_row(l), graph.mlp_row(l) + 1), 1 + l * graph.written + model.config.heads)]
    spans += [(slice(len(graph.targets) - 1, len(graph.targets)), len(graph.sources))]
    total: list[Tensor] = []
    for step in range(1, steps + 1):
        x = corrupt.written[0] + step / steps * (clean.written[0] - corrupt.written[0])
        found = _gradients(model, x, clean.last, answers, metric)
        total = found if not total else [a + b for a, b in zip(total, found, strict=True)]
    return [(rows, below, gradient / steps) for (rows, below), gradient in zip(spans, total, strict=True)]


def _gradients(model: Decoder, x: Tensor, clean_last: Tensor, answers: Tensor, metric: Metric) -> list[Tensor]:
    """Gradients at the inputs of each layer's attention [P,B,T,D] and MLP [1,B,T,D], and at the answer's."""
    inputs: list[Tensor] = []

    def expose(x: Tensor, copies: int) -> Tensor:
        inputs.append(x.expand(copies, *x.shape).clone())
        return inputs[-1]

    P = EdgeGraph(model.config).parts
    sums = InputSums(lambda _, x: expose(x, P), lambda _, x: expose(x, 1)[0], lambda x: expose(x, 1)[0])
    with torch.enable_grad():
        last = run_sums(model, x.detach().requires_grad_(), sums)
        each = logit_differences(last, answers) if metric == "logit-difference" else divergence(last, clean_last)
        return list(torch.autograd.grad(each.mean(), inputs))


def score_circuit(
    model: Decoder, clean: EdgeRun, corrupt: EdgeRun, answers: Tensor, mask: np.ndarray
) -> dict[str, float]:
    """Return the scores of a circuit [R,S]: logit difference, share above 0, divergence from the whole, accuracy."""
    last = run_circuit(model, clean, corrupt, torch.from_numpy(mask))
    right, differences = last.argmax(-1) == answers[:, 0], logit_differences(last, answers).double()
    return {
        "logit_difference": float(differences.mean()),
        "above": float((differences > 0).double().mean()),
        "kl": float(divergence(last, clean.last).double().mean()),
        "top1": float(right.double().mean()),
    }


def patch_edges(
    model: Decoder, clean: EdgeRun, corrupt: EdgeRun, answers: Tensor, edges: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Return how the logit difference changes when each edge alone is corrupted, exactly: one run per edge, [n]."""
    whole = EdgeGraph(model.config).exists
    base = float(logit_differences(clean.last, answers).double().mean())
    changes = []
    for edge in edges:
        mask = whole.copy()
        mask[edge] = False
        changes.append(score_circuit(model, clean, corrupt, answers, mask)["logit_difference"] - base)
    return np.array(changes)
