"""Ablation experiment: the loss of a text when heads are hidden, silenced, averaged, scaled or made to look elsewhere.

As many random heads are the control. Knows one text.
"""

import random
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fovea.errors import InvalidOption
from services.interpretability.attention.pattern_capture import ROWS_AT_ONCE
from services.interpretability.attention.retrieval_score import Head
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.losses import mask_heads, stream_losses, token_losses
from services.interpretability.core.report import Bar, Bars, Report, Scalar, Strip, Table
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.attention import resolve_indices
from shared.lm.decoder import Decoder
from shared.lm.taps import Attend, Edit, Replace, Scale, Trace, trace
from shared.registry import Paper


class AblationSpec(Spec):
    """Text, heads and kind of ablation."""

    text: str = Field(min_length=1, max_length=50_000, description="The text.")
    heads: list[list[int]] = Field(min_length=1, max_length=4096, description="[layer, head] pairs.")
    kind: Literal["uniform", "zero", "mean", "resample", "scale", "override"] = Field(
        "uniform", description="uniform hides; mean and resample take the head's own values at other positions."
    )
    factor: float = Field(0.5, ge=-10, le=10, description="Of scale.")
    keys: list[int] = Field(default_factory=list, max_length=64, description="Positions that override looks at, alike.")
    positions: list[int] | None = Field(None, min_length=1, max_length=32_768, description="Where; else everywhere.")
    continuation: int = Field(0, ge=0, le=64, description="Go on with the text for so many tokens, with and without.")
    phase: Literal["all", "decode"] = Field("all", description="decode: only the continuation is made without them.")
    correct: str | None = Field(None, max_length=200, description="One next token, for a logit difference.")
    wrong: str | None = Field(None, max_length=200, description="The other.")
    controls: int = Field(10, ge=10, le=100, description="Random draws of as many heads.")


class Ablation(Experiment[AblationSpec]):
    """Measures a text before and after an ablation, with random heads as control."""

    In = AblationSpec
    mode = "sync"
    route = "ablate"
    card = probe_card(
        "ablation",
        "Shows what a text loses when chosen heads are hidden, silenced or made to look elsewhere.",
        Paper.on_arxiv("Are Sixteen Heads Really Better than One?", 2019, "1905.10650", "NeurIPS"),
        "Hiding (uniform attention) is not silencing: the head then writes the mean of what it sees.",
        text="kqzwxm kqzwxm kqzwxm",
        heads=[[1, 1], [1, 2], [1, 3]],
        continuation=4,
    )

    def cost(self, spec: AblationSpec, subject: StudiedModel) -> Cost:
        n, draws = len(subject.encode(spec.text)), len(_draw_controls(spec, subject))
        steps = Cost(2 * spec.continuation, sum(2 * (n + i) for i in range(spec.continuation)), 0)
        extra = Cost(1, n) if spec.kind in {"mean", "resample"} else Cost(0, 0, 0)
        return Cost(2 + draws, (2 + draws) * n, max(draws, 1)) + steps + extra

    def run(self, spec: AblationSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids, heads = subject.encode(spec.text), subject.check_heads(spec.heads)
        row = subject.tensor([ids])
        z, n = _replacement_values(spec, subject, row), len(ids)
        drawn = (progress.cell({}, partial(_build_edits, spec, of, n, z)) for of in _draw_controls(spec, subject))
        control = [float(token_losses(subject.model, row, edits=of).mean()) for of in drawn]
        edits = {"before": [], "after": _build_edits(spec, heads, len(ids), z)}
        traces = {name: trace(subject.model, row, capture=["final"], edits=of, keep=1) for name, of in edits.items()}
        losses = {name: stream_losses(subject.model, of["final"], row)[0] for name, of in traces.items()}
        moved = _divergence(subject.model, *(of["final"] for of in traces.values()))
        kl = Scalar(value=float(moved.mean()), unit="nats", note="Mean over positions.")
        bars = [Bar(label=name, value=float(of.mean()) if len(ids) > 1 else None) for name, of in losses.items()]
        caption = f"Mean loss of the text. Control: {len(control)} draws of as many other heads, mean ± sd."
        tokens, how_far = subject.token_spans(ids), "How far the prediction after each token moved: KL divergence"
        return Report(
            title="Ablation",
            warnings=_warnings(losses, control),
            scalars={"kl": kl} | _loss_scalars(losses, control) | _answer_scalars(spec, subject, traces),
            tables=_continuation_tables(spec, subject, ids, heads, z),
            bars=[Bars(name="nll", unit="nats/token", bars=[*bars, Bar.of_draws("control", control)], caption=caption)],
            strips=[Strip(name="kl", tokens=tokens, values=moved.tolist(), caption=f"{how_far} from before, in nats.")],
        )


def _draw_controls(spec: AblationSpec, subject: StudiedModel) -> list[list[Head]]:
    ablated = set(subject.check_heads(spec.heads))
    others, rng = subject.complement(ablated), random.Random(f"ablation/{spec.seed}")
    return [sorted(rng.sample(others, len(ablated))) for _ in range(spec.controls * (len(ablated) <= len(others)))]


def _replacement_values(spec: AblationSpec, subject: StudiedModel, row: Tensor) -> dict[str, Tensor]:
    """Values that `mean` and `resample` put in place of a head's own: those of other positions of the same text."""
    if spec.kind not in {"mean", "resample"}:
        return {}
    names = [f"z.{l}" for l in range(subject.layers)]
    run = trace(subject.model, row, capture=names, keep=1)
    if spec.kind == "mean":
        return {name: run[name].mean(1, keepdim=True) for name in names}
    order = torch.from_numpy(np.random.default_rng(spec.seed).permutation(row.shape[1]))
    return {name: run[name][:, order] for name in names}


def _build_edits(spec: AblationSpec, heads: Iterable[Head], tokens: int, z: dict[str, Tensor]) -> list[Edit]:
    for field, kind, is_given in (("keys", "override", bool(spec.keys)), ("factor", "scale", spec.factor != 0.5)):
        if is_given and spec.kind != kind:
            raise InvalidOption(f"{field} is of kind={kind} alone, not of {spec.kind}.", field=field)
    where = None if spec.positions is None else resolve_indices(spec.positions, tokens, "positions")
    if spec.kind == "uniform":
        return mask_heads(heads, where)
    if spec.kind == "override":
        keys = resolve_indices(spec.keys, tokens, "keys")
        queries = resolve_indices(list(range(max(keys), tokens)) if where is None else where, tokens, "positions")
        if queries[0] < max(keys):
            raise InvalidOption(f"Position {queries[0]} can't look ahead at {max(keys)}.", field="positions")
        return [Attend(l, h, query, keys, 1 / len(keys)) for l, h in heads for query in queries]
    if spec.kind in {"mean", "resample"}:
        return [Replace(f"z.{l}", z[f"z.{l}"], heads=h, positions=where) for l, h in heads]
    return [Scale(f"z.{l}", spec.factor * (spec.kind == "scale"), heads=h, positions=where) for l, h in heads]


@torch.no_grad()
def _divergence(model: Decoder, before: Tensor, after: Tensor) -> np.ndarray:
    """KL(before ‖ after) at each position, in nats, of final streams [1,T,D]: [T]."""
    moved = []
    for streams in zip(torch.split(before[0], ROWS_AT_ONCE), torch.split(after[0], ROWS_AT_ONCE), strict=True):
        p, q = (model.read_logits(rows).float().log_softmax(-1) for rows in streams)
        moved.append(functional.kl_div(q, p, log_target=True, reduction="none").sum(-1))
    return np.asarray(torch.cat(moved).clamp(min=0).cpu())


def _warnings(losses: dict[str, Tensor], control: list[float]) -> list[str]:
    if not control:
        return ["More than half of all heads are ablated: too few are left for a control."]
    if losses["after"].numel() and float(losses["after"].mean()) <= max(control):
        return ["Some random draw hurts as much as these heads do: the text does not single them out."]
    return []


def _loss_scalars(losses: dict[str, Tensor], control: list[float]) -> dict[str, Scalar]:
    if not losses["before"].numel():
        return {}
    means = {name: float(of.mean()) for name, of in losses.items()}
    means["change"] = means["after"] - means["before"]
    scalars = {f"nll_{name}": Scalar(value=value, unit="nats/token") for name, value in means.items()}
    note = f"± {np.std(control):.3g}, {len(control)} draws" if control else None
    mean = {"nll_control": Scalar(value=float(np.mean(control)), unit="nats/token", note=note)} if control else {}
    return scalars | mean


def _answer_scalars(spec: AblationSpec, subject: StudiedModel, traces: dict[str, Trace]) -> dict[str, Scalar]:
    if not (spec.correct or spec.wrong):
        return {}
    right, wrong = (subject.encode(getattr(spec, one) or "", one, special=False)[0] for one in ("correct", "wrong"))
    if right == wrong:
        raise InvalidOption("correct and wrong begin with the same token, so they never differ.", field="wrong")
    differences = {name: float(of.logits[0, -1, right] - of.logits[0, -1, wrong]) for name, of in traces.items()}
    return {f"logit_diff_{name}": Scalar(value=value, unit="logits") for name, value in differences.items()}


def _continuation_tables(
    spec: AblationSpec, subject: StudiedModel, ids: list[int], heads: list[Head], z: dict[str, Any]
) -> list[Table]:
    if not spec.continuation:
        if spec.phase == "decode":
            raise InvalidOption("phase=decode needs a continuation.", field="phase")
        return []
    if spec.kind not in {"uniform", "zero", "scale"}:
        detail = f"A continuation under {spec.kind} has no values of its own; it exists for uniform, zero and scale."
        raise InvalidOption(detail, field="continuation")
    subject.check_window(len(ids) + spec.continuation, "continuation")
    texts = []
    for edits in ([], _build_edits(spec, heads, len(ids), z)):
        tokens = list(ids)
        for _ in range(spec.continuation):
            if edits and spec.phase == "decode":
                late = spec.model_copy(update={"positions": list(range(len(ids) - 1, len(tokens)))})
                edits = _build_edits(late, heads, len(tokens), z)  # noqa: PLW2901  # they grow with the text
            logits = trace(subject.model, subject.tensor([tokens]), edits=edits, keep=1).logits
            tokens.append(int(logits[0, -1].argmax()))
        texts.append(subject.tokenizer.decode(tokens[len(ids) :]))
    return [Table.of("continuation", "before, after", [texts], "How the text goes on, greedily.")]
