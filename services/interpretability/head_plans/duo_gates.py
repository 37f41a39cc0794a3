"""DuoAttention gates: one per key/value head, trained on the frozen model by distillation with a sparsity penalty.

"DuoAttention" (2024), section 4 of its spec: a dense teacher next to a stream that mixes dense and streaming attention
by the gates. Training can be saved between any two steps and resumes bit for bit. Knows nothing about experiments or
how plans are used.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from services.interpretability.head_plans.razor import model_id
from shared.lm.attention import DenseAttention
from shared.lm.attention_math import streaming_mask
from shared.lm.decoder import Decoder
from shared.lm.head_plan import HeadPlan, ModelId, Origin
from shared.lm.host_transfer import to_device
from shared.lm.taps import trace


@dataclass(frozen=True, slots=True, eq=False)
class DuoLoss:
    """Loss terms: distillation, mean |gate|, and their weighted sum; differentiable in the gates."""

    distill: Tensor
    sparsity: Tensor
    total: Tensor


def duo_gate_loss(
    net: Decoder,
    ids: Tensor | Sequence[int],
    answer: Tensor,
    gates: Tensor,
    sink: int = 128,
    recent: int = 256,
    reg: float = 0.05,
) -> DuoLoss:
    """Compute the loss of gates [L,G], clamped to 0 … 1, on one text of tokens [N] (DuoAttention, section 4).

    `answer` are the positions that count: bool [N], or indices. A streaming head sees the first `sink` and the last
    `recent` tokens, the query's own included; `reg` weighs the gates' mean.
    """
    device = net.output_matrix.device
    tokens, answer = to_device(ids, device).view(1, -1), to_device(answer, device)
    teacher = trace(net, tokens, capture=[*(f"z.{l}" for l in range(net.config.layers)), "normed"], keep=1)
    mask, dense = streaming_mask(tokens.shape[1], sink, recent, device), DenseAttention(windows=net.config.windows)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        if dense.window(layer) is not None:  # such a layer keeps its window, whatever a plan says
            return dense(layer, q, k, v, offset)
        share = gates[layer].clamp(0, 1).to(q.dtype).repeat_interleave(net.config.heads // net.config.kv_heads)
        heads = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        streaming = functional.scaled_dot_product_attention(
            heads[0], heads[1], heads[2], attn_mask=mask, enable_gqa=True
        ).transpose(1, 2)
        return (1 - share[:, None]) * streaming + share[:, None] * teacher[f"z.{layer}"]

    student = trace(net, tokens, attend=attend, capture=["normed"], keep=1, grad=gates.requires_grad)
    distill = (teacher["normed"] - student["normed"])[0, answer].square().mean(-1).mean()
    sparsity = gates.abs().mean()
    return DuoLoss(distill, sparsity, distill + reg * sparsity)


@dataclass(frozen=True, slots=True)
class GateRecipe:
    """Training recipe of the gates: the published one, its schedule stretched over `steps`."""

    steps: int = 200
    rate: float = 0.02
    sink: int = 128
    recent: int = 256
    reg: float = 0.05

    def rate_at(self, step: int) -> float:
        """Return the rate of a step (from 0): it rises over the first fifth, falls over the last, to a tenth of it."""
        edge = max(math.ceil(self.steps / 5), 1)
        return self.rate * max(0.1, min(1.0, (step + 1) / edge, (self.steps - step) / edge))


class GateTraining:
    """Training of gates [L,G] by AdamW without decay; all start open.

    Attributes:
        done: Steps done.
    """

    def __init__(self, net: Decoder, recipe: GateRecipe, state: Mapping[str, Any] | None = None) -> None:
        """Start, or resume from a saved `state`."""
        self._net, self._recipe = net, recipe
        like = net.output_matrix
        self._gates = torch.ones(net.config.layers, net.config.kv_heads, requires_grad=True, device=like.device)
        self._optimiser = torch.optim.AdamW([self._gates], lr=recipe.rate, weight_decay=0.0)
        self.done = 0
        if state is not None:
            self._restore(state)

    @property
    def gates(self) -> list[list[float]]:
        """[L][G], 0 to 1."""
        gates: list[list[float]] = self._gates.detach().clamp(0, 1).tolist()
        return gates

    @torch.enable_grad()
    def step(self, ids: Tensor, answer: Tensor) -> tuple[float, float]:
        """Train one step on one text; return the distillation loss and the gates' mean before it."""
        recipe = self._recipe
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.rate_at(self.done)
        with torch.no_grad():
            self._gates.clamp_(0, 1)
        self._optimiser.zero_grad()
        loss = duo_gate_loss(self._net, ids, answer, self._gates, recipe.sink, recipe.recent, recipe.reg)
        loss.total.backward()  # type: ignore[no-untyped-call]  # torch's own
        self._optimiser.step()
        self.done += 1
        return float(loss.distill.detach()), float(loss.sparsity.detach())

    def state(self) -> dict[str, Any]:
        """Return everything the next step depends on, as JSON; numbers survive it exactly."""
        moments = self._optimiser.state.get(self._gates, {})
        return {
            "done": self.done,
            "gates": self._gates.detach().tolist(),
            "moments": {name: moments[name].tolist() for name in ("step", "exp_avg", "exp_avg_sq") if moments},
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.done = int(state["done"])
        with torch.no_grad():
            self._gates.copy_(to_device(torch.tensor(state["gates"]), self._gates.device))
        if state["moments"]:
            moments = {name: to_device(torch.tensor(x), self._gates.device) for name, x in state["moments"].items()}
            self._optimiser.state[self._gates] = moments | {"step": moments["step"].cpu()}  # as Adam has them


def gate_plan(
    gates: Sequence[Sequence[float]], share: float, *, model: ModelId, spec: Mapping[str, Any], seed: int
) -> HeadPlan:
    """Make the plan whose top `share` of heads by trained gates [L][G] are full."""
    origin = Origin(experiment="duo_gates", spec=dict(spec), seed=seed)
    scores = {"duo_gate": [list(row) for row in gates]}
    return HeadPlan.from_scores(scores, "duo_gate", share, model=model, made_by=origin)


def duo_gates(
    net: Decoder,
    data: Iterable[tuple[Tensor, Tensor]],
    *,
    steps: int = 200,
    rate: float = 0.02,
    sink: int = 128,
    recent: int = 256,
    reg: float = 0.05,
    share: float = 0.5,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> HeadPlan:
    """Train the gates on (ids, answer) pairs, one a step, and make the top `share` of heads full."""
    net.requires_grad_(requires_grad=False)
    recipe = GateRecipe(steps, rate, sink, recent, reg)
    training = GateTraining(net, recipe)
    for _, (ids, answer) in zip(range(steps), data, strict=False):
        training.step(ids, answer)
        if progress is not None:
            progress(training.done / steps)
    spec = asdict(recipe) | {"steps": training.done}
    return gate_plan(training.gates, share, model=model_id(net), spec=spec, seed=seed)
