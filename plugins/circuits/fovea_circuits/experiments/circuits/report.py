"""Report of the circuits experiment: effect maps, kinds of heads, the graph, knock-out bars and warnings.

Knows numbers and names; computes nothing about models.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fovea_circuits.circuit_tasks import Case
from fovea_circuits.experiments.circuits.spec import CircuitsSpec, Head, Receivers
from services.interpretability.attention.head_scores import top_heads
from services.interpretability.core.report import (
    Artefact,
    Bar,
    Bars,
    Edge,
    Graph,
    Node,
    Report,
    Scalar,
    Table,
    canonical_json,
    head_map,
    head_name,
)

MIN_PATTERN_SCORE = 0.3
"""Mean attention on a repeated sequence from which a head is called by what it does there."""


@dataclass
class CircuitFindings:
    """Measurements of one run, complete or as far as it came."""

    cases: list[Case]
    task: dict[str, Any]
    groups: int
    stages: dict[str, np.ndarray] = field(default_factory=dict)
    receivers: dict[str, Receivers] = field(default_factory=dict)
    patterns: dict[str, np.ndarray] = field(default_factory=dict)
    knockout: dict[str, dict[str, float]] = field(default_factory=dict)
    overridden: dict[str, float] = field(default_factory=dict)

    @property
    def clean(self) -> float:
        """Logit difference of the clean prompts."""
        return float(self.task["ld"])

    @property
    def corrupt(self) -> float:
        """Logit difference of the counterfactuals."""
        return float(self.task["corrupt"])

    def kept_heads(self, stage: str, fraction: float) -> list[Head]:
        """Return the heads that a stage keeps."""
        return top_heads(self.stages[stage], fraction)

    def receivers_after(self, stage: str, part: str, fraction: float) -> Receivers:
        """Return the receivers of the next stage: queries, keys or values of the heads that `stage` kept."""
        if stage not in self.stages:
            return []
        heads = [head for head in self.kept_heads(stage, fraction) if head[0] > 0 and self.stages[stage][head] > 0]
        share = self.stages[stage].shape[1] // self.groups
        return sorted({(l, part, h if part == "q" else h // share) for l, h in heads})


def build_report(spec: CircuitsSpec, findings: CircuitFindings) -> Report:
    """Return the report of a run, complete or as far as it came."""
    text = findings.cases[0].text
    effect = (
        "Share of the answer's logit difference that the head's corrupt path moves towards the counterfactual: 1 "
        "undoes the answer, below 0 helps it. Effects need not add up to 1. Empty: no path."
    )
    grids = [
        head_map(f"effect on {name}", values, effect, scale="diverging", text=text)
        for name, values in findings.stages.items()
    ]
    directly = "Direct contribution of each head towards the right answer and away from the wrong one, at the end."
    more = {"scale": "diverging", "unit": "logits", "text": text}
    attribution = head_map("attribution", findings.task["heads"], directly, **more)
    kinds = classify_heads(findings, spec.fraction)
    return Report(
        title=f"Circuit of {spec.task}",
        warnings=[*spec.unread, *warn_of_task(findings.task, findings.corrupt - findings.clean, len(findings.cases))],
        scalars=_scalars(findings),
        tables=[_heads_table(findings, kinds, spec.fraction), _prompts_table(findings)],
        grids=[*grids, attribution],
        bars=_knockout_bars(spec, findings),
        graphs=[graph := _graph(findings, kinds, spec.fraction)],
        artefacts=[Artefact.of("circuit.json", canonical_json(graph.model_dump(mode="json")))],
    )


def classify_heads(findings: CircuitFindings, fraction: float) -> dict[Head, str]:
    """Name the kind of each kept head (section 3), as far as patterns and attribution tell."""
    kinds: dict[Head, str] = {}
    heads = np.array(findings.task["heads"])
    for stage in findings.stages:
        for head in findings.kept_heads(stage, fraction):
            known = ("previous", "duplicate", "induction") if findings.patterns else ()
            typical = {kind: findings.patterns[kind][head] for kind in known}
            best = max(typical, key=lambda kind: typical[kind], default="")
            if best and typical[best] >= MIN_PATTERN_SCORE:
                kinds[head] = {"previous": "previous token", "duplicate": "duplicate token"}.get(best, best)
            elif stage in {"final", "receivers"}:
                kinds[head] = "mover" if heads[head] > 0 else "negative mover"
            else:
                kinds.setdefault(head, "inhibition" if stage == "q of movers" else "other")
    return kinds


def warn_of_task(task: Mapping[str, float], span: float, prompts: int) -> list[str]:
    """Return what must be known before a circuit is believed; `span` is the corrupt less the clean logit difference."""
    warnings = []
    if task["top1"] < 0.5 or task["above"] < 0.8:
        warnings.append(
            f"Task not solved: top-1 {task['top1']:.0%}, "
            f"logit difference above 0 on {task['above']:.0%}. A circuit of what "
            "a model can't do means little, and so does its overlap with another."
        )
    if abs(span) < 1e-6:
        warnings.append("Clean and corrupt prompts have the same logit difference: effects are undefined.")
    if prompts < 16:
        warnings.append(f"{prompts} prompts are few; effects below a few per cent may be noise.")
    return warnings


def _scalars(findings: CircuitFindings) -> dict[str, Scalar]:
    task = findings.task
    scalars = {
        "prompts": Scalar(value=len(findings.cases)),
        "logit_diff": Scalar(value=task["ld"], unit="logits", note="Right minus wrong answer, mean over prompts."),
        "logit_diff_corrupt": Scalar(value=task["corrupt"], unit="logits", note="On the counterfactuals."),
        "above_zero": Scalar(value=task["above"], note="Share of prompts."),
        "top1": Scalar(value=task["top1"], note="The right answer is the likeliest token of all."),
        "among_answers": Scalar(value=task["among"], note="The right answer is the likeliest of the answers."),
        "attribution_total": Scalar(
            value=task["total"], unit="logits", note="Heads, MLPs, embedding and biases together; equals logit_diff."
        ),
        "attribution_mlps": Scalar(value=float(np.sum(task["mlps"])), unit="logits"),
        "attribution_embedding": Scalar(value=task["embedding"], unit="logits"),
    }
    if findings.overridden:
        scalars["top1_overridden"] = Scalar(
            value=findings.overridden["top1"], note="With heads made to see the wrong colours."
        )
    return scalars


def _heads_table(findings: CircuitFindings, kinds: Mapping[Head, str], fraction: float) -> Table:
    heads = np.array(findings.task["heads"])
    rows = [
        [stage, head_name(head), kinds.get(head, ""), float(effect[head]), float(heads[head])]
        for stage, effect in findings.stages.items()
        for head in findings.kept_heads(stage, fraction)
    ]
    caption = "The heads that each stage keeps, largest first."
    return Table.of("circuit", "stage, head, kind, effect, attribution", rows, caption)


def _prompts_table(findings: CircuitFindings) -> Table:
    kinds = sorted({case.kind for case in findings.cases})
    rows = [[kind or "all", sum(case.kind == kind for case in findings.cases)] for kind in kinds]
    return Table.of("prompts", "order, prompts", rows, "Prompts by their order of names.")


def _graph(findings: CircuitFindings, kinds: Mapping[Head, str], fraction: float) -> Graph:
    heads, edges = np.array(findings.task["heads"]), []
    nodes = {
        head: Node(id=head_name(head), layer=head[0], head=head[1], kind=kinds.get(head, ""), value=float(heads[head]))
        for stage in findings.stages
        for head in findings.kept_heads(stage, fraction)
    }
    for stage, effect in findings.stages.items():
        receivers = findings.receivers[stage]
        targets = ["output"] if receivers == "final" else sorted({_target(findings, r) for r in receivers})
        for head in findings.kept_heads(stage, fraction):
            edges += [Edge(source=head_name(head), target=target, value=float(effect[head])) for target in targets]
    return Graph(
        name="circuit",
        nodes=[nodes[head] for head in sorted(nodes)],
        edges=edges,
        caption="Heads by layer; an edge is as wide as the effect of its source through all receivers of that stage "
        "together, blue where corrupting it takes from the answer and orange where it helps.",
    )


def _target(findings: CircuitFindings, receiver: tuple[int, str, int]) -> str:
    layer, part, head = receiver
    if part == "q":
        return head_name((layer, head))
    share = len(findings.task["heads"][0]) // findings.groups
    return f"{layer}-{head * share}…{(head + 1) * share - 1}" if share > 1 else head_name((layer, head))


def _knockout_bars(spec: CircuitsSpec, findings: CircuitFindings) -> list[Bars]:
    if not findings.knockout:
        return []
    draws = [v["logit_diff"] for name, v in findings.knockout.items() if name.startswith("random")]
    top = f"top {spec.knockout}"
    bars = [
        Bar(label="none", value=findings.clean),
        Bar(label=top, value=findings.knockout[top]["logit_diff"]),
        Bar.of_draws(f"random {spec.knockout}", draws),
    ]
    drawn = f"{len(draws)} random draws of as many others (mean ± sd)" if draws else "no control: too few are left"
    caption = f"Logit difference with heads zeroed: those of largest attribution, and {drawn}."
    return [Bars(name="knockout", unit="logits", bars=bars, caption=caption)]
