"""Circuits: which heads do a task, through which others, and what the model can't do without them.

"Interpretability in the Wild" (2022) and "Circuit Component Reuse Across Tasks in Transformer Language Models" (2024).
The measurements themselves are in `patching` and `circuit`, the tasks in `tasks`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from services.interpretability.attention.head_scores import head_patterns, overlap, top_heads
from services.interpretability.causal import circuit_tasks
from services.interpretability.causal.activation_cache import ActivationCache, run_with_cache
from services.interpretability.causal.patching import (
    ablate,
    activation_patch,
    attribute_logits,
    attribution_patch,
    direct_logit_attribution,
    logit_difference,
    patch_heads,
    patch_paths,
    path_patch,
)
from services.interpretability.circuit_report import CircuitFindings, build_report
from services.interpretability.core.experiment import NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import Report, to_matrix
from services.interpretability.core.studied_model import StudiedModel
from shared.errors import InvalidOption
from shared.lm.taps import Attend, Edit, Scale, sweep, trace
from shared.registry import Card, Paper

__all__ = [
    "Circuits",
    "CircuitsSpec",
    "ablate",
    "activation_patch",
    "direct_logit_attribution",
    "head_patterns",
    "logit_difference",
    "overlap",
    "path_patch",
    "top_heads",
]

Head = tuple[int, int]

PAIRS = "\n".join(
    f'{{"clean": "{key}{a} {key}", "corrupt": "{key}{b} {key}", "correct": "{a}", "wrong": "{b}"}}'
    for key, a, b in (("kqzwx", "m", "d"), ("hjvbt", "p", "s"), ("wgfyc", "r", "n"))
)
"""A task for the tiny model: what followed these letters before?"""


class CircuitsSpec(Spec):
    """A task, and how its circuit is looked for."""

    task: Literal["ioi", "colored-objects", "own"] = Field("ioi", description="`own` takes `pairs`.")
    pairs: str | None = Field(
        None, max_length=1_000_000, description="JSON lines of clean, corrupt, correct, wrong, for the task `own`."
    )
    prompts: int = Field(16, ge=1, le=1000, description="Prompts of ioi and colored-objects.")
    counterfactual: Literal["flip", "abc"] = Field("flip", description="Of ioi: names exchanged, or unrelated ones.")
    method: Literal["path", "activation", "attribution"] = Field("path", description="How effects are measured.")
    receivers: list[tuple[int, Literal["q", "k", "v"], int]] = Field(
        default_factory=list, max_length=512, description="[layer, q|k|v, head]; left out, the final residual stream."
    )
    positions: Literal["all", "end"] = Field("end", description="Where heads are corrupted, and received.")
    freeze_mlps: bool = Field(False, description="Only direct paths: MLP outputs stay clean.")
    stages: int = Field(1, ge=1, le=4, description="Go on to the q of what was found, its v, and its k.")
    fraction: float = Field(0.02, gt=0, le=1, description="Share of all heads that a stage keeps.")
    knockout: int = Field(5, ge=0, le=200, description="Zero so many heads of largest attribution, beside random ones.")
    controls: int = Field(10, ge=10, le=100, description="Random draws of as many heads.")
    override: list[list[int]] = Field(
        default_factory=list,
        max_length=64,
        description="colored-objects: these [layer, head] look at the two wrong colours at the last position.",
    )


class Circuits(Experiment[CircuitsSpec]):
    """Finds the heads of a task by patching, and says whether the model does the task at all."""

    In = CircuitsSpec
    route: ClassVar[str] = "circuits"
    card: ClassVar[Card] = Card(
        name="circuits",
        task="probe",
        licence="Apache-2.0",
        summary="Finds the circuit of heads behind a task by path patching, and tests it by knocking heads out.",
        paper=Paper(
            title="Circuit Component Reuse Across Tasks in Transformer Language Models",
            venue="ICLR",
            year=2024,
            url="https://arxiv.org/abs/2310.08744",
        ),
        notes=(
            "The papers' 78 % overlap and 49.6 → 93.7 % are GPT-2 Medium's: put its folder into the weights folder.",
            "Effects need not add up to 1; some are negative or above 1.",
            NO_GRAPH,
        ),
        example={"lm": "tiny-induction", "seed": 0, "task": "own", "pairs": PAIRS, "knockout": 2, "stages": 2},
    )

    def cost(self, spec: CircuitsSpec, subject: StudiedModel) -> Cost:
        """Two recorded runs per length of prompt; patching goes through the layers above each sender only."""
        found = circuit_tasks.group_by_length(make_cases(spec, subject))
        tokens = sum(len(b.cases) * len(b.cases[0].clean) for b in found)
        total = Cost(2 * len(found), 2 * tokens, len(found))
        if spec.method == "attribution":
            total += Cost(2 * len(found), 2 * tokens, len(found))
        else:
            stages = spec.stages if spec.method == "path" else 1
            cells = len(found) * subject.layers * stages
            total += Cost(0, 0, cells, partial=tokens * subject.layers * subject.heads * stages // 2)
        variants = bool(spec.knockout) * (1 + len(_draw_controls(spec, subject))) + bool(spec.override)
        total += Cost(variants * len(found), variants * tokens, bool(spec.knockout) * len(found))
        return total + Cost(1, 2 * _pattern_period(subject), 1)

    def run(self, spec: CircuitsSpec, subject: StudiedModel, progress: Progress) -> Report:
        """Task, effects stage by stage, attribution, knock-outs."""
        cases = make_cases(spec, subject)
        work = _CircuitCells(spec, subject, progress, circuit_tasks.group_by_length(cases))
        study = CircuitFindings(cases=cases, task=work.task(), groups=subject.model.config.kv_heads)
        for name, receivers in _stages(spec, study):
            if progress.stopped or receivers == []:
                break
            study.stages[name] = work.stage(receivers, study)
            study.receivers[name] = receivers
        if not progress.stopped:
            study.patterns = work.patterns()
        if spec.knockout and not progress.stopped:
            study.knockout = work.knockout(study)
        if spec.override and not progress.stopped:
            study.overridden = work.overridden()
        return build_report(spec, subject, study)


PATTERN_PERIOD = 16
"""Tokens of the random sequence that is said twice to tell previous-token, duplicate and induction heads apart."""

Receivers = Literal["final"] | list[tuple[int, str, int]]


def _pattern_period(subject: StudiedModel) -> int:
    return min(PATTERN_PERIOD, subject.window // 2)


def make_cases(spec: CircuitsSpec, subject: StudiedModel) -> list[circuit_tasks.Case]:
    """The prompts of the task.

    Raises:
        InvalidOption: The tokenizer does not fit the task, or `pairs` is missing.
    """
    if spec.task == "own":
        if not (found := circuit_tasks.parse_pairs(subject, spec.pairs or "")):
            detail = "The task own needs at least one line in pairs."
            raise InvalidOption(detail, field="pairs")
        return found
    if spec.task == "ioi":
        return circuit_tasks.make_indirect_objects(subject, spec.prompts, spec.seed, spec.counterfactual)
    return circuit_tasks.make_coloured_objects(subject, spec.prompts, spec.seed)


def _draw_controls(spec: CircuitsSpec, subject: StudiedModel) -> list[tuple[int, ...]]:
    """Different random sets of places in the ranking by attribution, outside its top 15 %."""
    size = subject.layers * subject.heads
    outside = range(max(spec.knockout, round(0.15 * size)), size)
    rng, found = random.Random(f"knockout/{spec.seed}"), set[tuple[int, ...]]()
    for _ in range(100 * spec.controls):
        found.add(tuple(sorted(rng.sample(outside, min(spec.knockout, len(outside))))))
        if len(found) == spec.controls:
            break
    return sorted(found)


def _stages(spec: CircuitsSpec, study: CircuitFindings) -> Iterator[tuple[str, Receivers]]:
    """Stage names with their receivers; later ones follow from what earlier ones found (section 2, discovery)."""
    yield ("final", "final") if not spec.receivers else ("receivers", list(spec.receivers))
    if spec.method != "path" or spec.receivers:
        return
    for before, name, part in (("final", "q of movers", "q"), ("q of movers", "v", "v"), ("v", "k", "k"))[
        : spec.stages - 1
    ]:
        yield name, study.receivers_after(before, part, spec.fraction)


@dataclass
class _CircuitCells:
    """The cells of one study: each depends on its batch and its part alone."""

    spec: CircuitsSpec
    subject: StudiedModel
    progress: Progress
    batches: list[circuit_tasks.CaseBatch]

    def __post_init__(self) -> None:
        self._runs: dict[int, tuple[ActivationCache, ActivationCache]] = {}

    def task(self) -> dict[str, Any]:
        """How well the model does the task, and what each part writes towards the answer."""
        values = self._over_batches({"part": "task"}, self._task)
        if not values:
            check_stopped(self.progress)
        return _mean(values, [len(batch.cases) for batch in self.batches[: len(values)]])

    def stage(self, receivers: Receivers, study: CircuitFindings) -> np.ndarray:
        """Effects of all senders on these receivers [L,H], over all prompts together."""
        size = (self.subject.layers, self.subject.heads)
        if self.spec.method == "attribution":
            moved = self._over_batches({"part": "attribution-patching"}, self._estimated)
            changed = self._weighted([np.array(v, float) for v in moved], size)
        else:
            changed = (
                self._weighted([self._patched(i, receivers) for i in range(len(self.batches))], size) - study.clean
            )
        span = study.corrupt - study.clean
        return changed / span if abs(span) >= 1e-6 else np.full(size, np.nan)

    def patterns(self) -> dict[str, np.ndarray]:
        """Pattern scores of all heads on a random sequence said twice."""
        rng = random.Random(f"patterns/{self.spec.seed}")
        half = [rng.randrange(self.subject.model.config.vocab) for _ in range(_pattern_period(self.subject))]
        found = self.progress.cell(
            {"part": "patterns", "half": half},
            lambda: {name: to_matrix(scores) for name, scores in head_patterns(self.subject.model, half).items()},
        )
        return {name: np.array(scores) for name, scores in found.items()}

    def knockout(self, study: CircuitFindings) -> dict[str, dict[str, float]]:
        """Variant → logit difference and share above zero, with heads zeroed together."""
        order = top_heads(np.array(study.task["heads"]), 1.0)
        sets = {f"top {self.spec.knockout}": order[: self.spec.knockout]}
        draws = _draw_controls(self.spec, self.subject)
        sets |= {f"random #{i}": [order[place] for place in drawn] for i, drawn in enumerate(draws)}
        values = self._over_batches(
            {"part": "knockout", "sets": [sorted(heads) for heads in sets.values()]},
            lambda i: self._zeroed(i, list(sets.values())),
        )
        weights = [len(batch.cases) for batch in self.batches[: len(values)]]
        return {
            name: {"logit_diff": mean["ld"], "above_zero": mean["above"]}
            for name, mean in ((n, _mean([v[j] for v in values], weights)) for j, n in enumerate(sets))
        }

    def overridden(self) -> dict[str, float]:
        """Top-1 accuracy with some heads looking at the wrong colours (2024, section 5)."""
        heads = self.subject.check_heads(self.spec.override, "override")
        values = [self._override(batch, heads) for batch in self.batches]
        return _mean(values, [len(batch.cases) for batch in self.batches])

    # One batch.

    def _task(self, i: int) -> dict[str, Any]:
        run, other = self._recorded(i)
        answers = self._answers(i)
        parts = attribute_logits(run, answers)
        return {
            **_score_task(run.last, answers),
            "corrupt": logit_difference(other.last, answers),
            "heads": to_matrix(parts.heads),
            "mlps": parts.mlps.tolist(),
            "embedding": parts.embedding,
            "biases": parts.biases,
            "total": parts.total,
        }

    def _patched(self, i: int, receivers: Receivers) -> np.ndarray:
        """Patched logit differences of one batch [L,H], a cell per sender layer."""
        top = (
            self.subject.layers
            if receivers == "final" or self.spec.method == "activation"
            else min(r[0] for r in receivers)
        )
        found = np.full((self.subject.layers, self.subject.heads), np.nan)
        how = {"method": self.spec.method, "receivers": receivers, "positions": self.spec.positions}
        content = {"part": "patch", **how, "freeze_mlps": self.spec.freeze_mlps, **self.batches[i].facts}
        for layer, row in self.progress.each(
            range(top), lambda layer: {**content, "layer": layer}, lambda layer: self._layer(i, receivers, layer)
        ):
            found[layer] = row
        return found

    def _layer(self, i: int, receivers: Receivers, layer: int) -> list[float]:
        (run, other), answers = self._recorded(i), self._answers(i)
        where: Any = "all" if self.spec.positions == "all" else -1
        if self.spec.method == "activation":
            found = patch_heads(run, other.z, answers, positions=where, senders=range(layer, layer + 1))
        else:
            found = patch_paths(
                run,
                other,
                answers,
                receivers=receivers,
                positions=where,
                freeze_mlps=self.spec.freeze_mlps,
                senders=range(layer, layer + 1),
            ).patched
        row: list[float] = found[layer].tolist()
        return row

    def _estimated(self, i: int) -> Any:
        clean, corrupt = (self.subject.tensor(ids) for ids in (self.batches[i].clean, self.batches[i].corrupt))
        return to_matrix(attribution_patch(self.subject.model, clean, corrupt, self._answers(i)))

    def _zeroed(self, i: int, sets: Sequence[Sequence[Head]]) -> list[dict[str, float]]:
        variants: list[list[Edit]] = [[Scale(f"z.{l}", 0.0, heads=h) for l, h in heads] for heads in sets]
        ids, answers = self.subject.tensor(self.batches[i].clean), self._answers(i)
        traced = sweep(self.subject.model, ids, variants, keep=1, batch=1)
        return [_score_task(one.logits[:, -1], answers) for one in traced]

    def _override(self, batch: circuit_tasks.CaseBatch, heads: Sequence[Head]) -> dict[str, float]:
        edits: list[Edit] = [
            Attend(l, h, case.marks["END"][0], case.marks["WRONG"], 1 / len(case.marks["WRONG"]), rows=row)
            for row, case in enumerate(batch.cases)
            if case.marks.get("WRONG")
            for l, h in heads
        ]
        if not edits:
            detail = "override works on prompts whose wrong answers stand in them: the task colored-objects."
            raise InvalidOption(detail, field="override")
        logits = trace(self.subject.model, self.subject.tensor(batch.clean), edits=edits, keep=1).logits[:, -1]
        return _score_task(logits, self.subject.tensor(batch.answers))

    # What batches share.

    def _over_batches(self, content: Mapping[str, Any], work: Callable[[int], Any]) -> list[Any]:
        numbered = range(len(self.batches))
        return [v for _, v in self.progress.each(numbered, lambda i: {**content, **self.batches[i].facts}, work)]

    def _recorded(self, i: int) -> tuple[ActivationCache, ActivationCache]:
        """Clean and corrupt run of a batch; those of one batch are kept at a time."""
        if i not in self._runs:
            model, batch = self.subject.model, self.batches[i]
            both = (run_with_cache(model, self.subject.tensor(ids)) for ids in (batch.clean, batch.corrupt))
            self._runs = {**self._runs, i: tuple(both)}  # type: ignore[dict-item]  # two of them
        return self._runs[i]

    def _answers(self, i: int) -> Tensor:
        return self.subject.tensor(self.batches[i].answers)

    def _weighted(self, found: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """Mean over prompts of batch means."""
        weights = [len(batch.cases) for batch in self.batches[: len(found)]]
        return np.average(found, axis=0, weights=weights) if found else np.full(size, np.nan)


def check_stopped(progress: Progress) -> None:
    """Stop as the run was told to: without the task's numbers there is nothing to report."""
    progress.cell({}, lambda: None)


def _score_task(last: Tensor, answers: Tensor) -> dict[str, float]:
    """How well a task is done: logits [B,V], answers [B,1+w]."""
    chosen = last.gather(1, answers).double()
    differences = chosen[:, 0] - chosen[:, 1:].mean(1)
    right = last.argmax(-1) == answers[:, 0]
    return {
        "ld": float(differences.mean()),
        "above": float((differences > 0).double().mean()),
        "top1": float(right.double().mean()),
        "among": float((chosen.argmax(1) == 0).double().mean()),
    }


def _mean(values: Sequence[Mapping[str, Any]], weights: Sequence[int]) -> dict[str, Any]:
    """Mean over prompts of batch means, for numbers and nested lists alike."""
    return {
        key: np.average(np.array([v[key] for v in values], float), axis=0, weights=weights).tolist()
        for key in values[0]
    }
