"""Cells of one circuits run: task scores, patching effects per stage, pattern scores, knock-outs and overrides.

Every cell depends on its batch of prompts and its part alone, so it can be cached. Knows tensors; knows no report.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fovea_circuits.activation_cache import ActivationCache, run_with_cache
from fovea_circuits.circuit_tasks import Case, CaseBatch, group_by_length, split_batches
from fovea_circuits.experiments.circuits.report import CircuitFindings
from fovea_circuits.experiments.circuits.spec import CircuitsSpec, Head, Receivers
from fovea_circuits.patching import attribute_logits, attribution_patch, logit_difference, patch_heads, patch_paths
from services.interpretability.attention.head_scores import head_patterns, top_heads
from services.interpretability.core.experiment import Progress
from services.interpretability.core.report import to_matrix
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.head_patterns import draw_half
from shared.lm.taps import Attend, Edit, Scale, sweep, trace

PATTERN_PERIOD = 16
"""Period, in tokens, of the random sequence that tells previous-token, duplicate and induction heads apart."""

MAX_BATCH_BYTES = 256 * 2**20
"""Bound on the activations of one run of a batch."""

MAX_HELD_BYTES = 2 * 2**30
"""Bound on the activations that stay in memory; past it batches are run again for each stage."""


def group_cases(cases: Iterable[Case], subject: StudiedModel) -> list[CaseBatch]:
    """Group cases by length so that the activations of one batch fit in memory."""
    return split_batches(group_by_length(cases), _token_bytes(subject), MAX_BATCH_BYTES)


def _token_bytes(subject: StudiedModel) -> int:
    """Bytes of an `ActivationCache` per token, about: six streams of each layer in float32."""
    return 24 * subject.layers * subject.model.config.width


@dataclass
class CircuitCells:
    """The cells of one run, over batches of prompts of equal length."""

    spec: CircuitsSpec
    subject: StudiedModel
    progress: Progress
    batches: list[CaseBatch]

    def __post_init__(self) -> None:
        self._caches: dict[int, tuple[ActivationCache, ActivationCache]] = {}

    def measure_task(self) -> dict[str, Any]:
        """Measure how well the model does the task, and what each component writes; `Cancelled` without a batch."""
        values = self._over_batches({"part": "task"}, self._measure_batch)
        if not values:
            self.progress.cell({}, lambda: None)  # raises why the run was stopped
        return _mean(values, [len(batch.cases) for batch in self.batches[: len(values)]])

    def measure_stage(self, receivers: Receivers, findings: CircuitFindings) -> np.ndarray:
        """Return the effects of all senders on these receivers [L,H], over all prompts together."""
        size = (self.subject.layers, self.subject.heads)
        if self.spec.method == "attribution":
            content = {"part": "attribution-patching", "positions": self.spec.positions}
            moved = self._over_batches(content, self._attribution_effects)
            changed = self._average([np.array(v, float) for v in moved], size)
        else:
            patched = [self._patch_batch(i, receivers) for i in range(len(self.batches))]
            changed = self._average(patched, size) - findings.clean
        span = findings.corrupt - findings.clean
        return changed / span if abs(span) >= 1e-6 else np.full(size, np.nan)

    def measure_patterns(self) -> dict[str, np.ndarray]:
        """Return the pattern scores of all heads on a random sequence that comes twice."""
        half = draw_half(self.subject, pattern_period(self.subject), self.spec.seed)
        scores = self.progress.cell(
            {"part": "patterns", "half": half},
            lambda: {name: to_matrix(table) for name, table in head_patterns(self.subject.model, half).items()},
        )
        return {name: np.array(table) for name, table in scores.items()}

    def measure_knockout(self, findings: CircuitFindings) -> dict[str, dict[str, float]]:
        """Return, per set of heads zeroed together, the logit difference and the share of prompts above zero."""
        order = top_heads(np.array(findings.task["heads"]), 1.0)
        sets = {f"top {self.spec.knockout}": order[: self.spec.knockout]}
        draws = draw_controls(self.spec, self.subject)
        sets |= {f"random #{i}": [order[place] for place in drawn] for i, drawn in enumerate(draws)}
        values = self._over_batches(
            {"part": "knockout", "sets": [sorted(heads) for heads in sets.values()]},
            lambda i: self._zero_heads(i, list(sets.values())),
        )
        weights = [len(batch.cases) for batch in self.batches[: len(values)]]
        if not values:  # the run was stopped before the first batch
            return {}
        means = {name: _mean([value[j] for value in values], weights) for j, name in enumerate(sets)}
        return {name: {"logit_diff": mean["ld"], "above_zero": mean["above"]} for name, mean in means.items()}

    def measure_override(self) -> dict[str, float]:
        """Return the task's scores with some heads made to look at the wrong colours (2024, section 5)."""
        heads = self.subject.check_heads(self.spec.override, "override")
        values = [self._override_batch(batch, heads) for batch in self.batches]
        return _mean(values, [len(batch.cases) for batch in self.batches])

    # One batch.

    def _measure_batch(self, i: int) -> dict[str, Any]:
        clean, corrupt = self._caches_of(i)
        answers = self._answers(i)
        parts = attribute_logits(clean, answers)
        return {
            **_score_task(clean.last, answers),
            "corrupt": logit_difference(corrupt.last, answers),
            "heads": to_matrix(parts.heads),
            "mlps": parts.mlps.tolist(),
            "embedding": parts.embedding,
            "biases": parts.biases,
            "total": parts.total,
        }

    def _patch_batch(self, i: int, receivers: Receivers) -> np.ndarray:
        """Patched logit differences of one batch [L,H], a cell per sender layer."""
        top = self.subject.layers
        if receivers != "final":
            top = min(layer for layer, _, _ in receivers)
        patched = np.full((self.subject.layers, self.subject.heads), np.nan)
        how = {"method": self.spec.method, "receivers": receivers, "positions": self.spec.positions}
        content = {"part": "patch", **how, "freeze_mlps": self.spec.freeze_mlps, **self.batches[i].facts}
        for layer, row in self.progress.each(
            range(top), lambda layer: {**content, "layer": layer}, lambda layer: self._patch_layer(i, receivers, layer)
        ):
            patched[layer] = row
        return patched

    def _patch_layer(self, i: int, receivers: Receivers, layer: int) -> list[float]:
        (clean, corrupt), answers = self._caches_of(i), self._answers(i)
        senders = range(layer, layer + 1)
        if self.spec.method == "activation":
            patched = patch_heads(clean, corrupt.z, answers, positions=self._where, senders=senders)
        else:
            how: Any = {"receivers": receivers, "positions": self._where, "freeze_mlps": self.spec.freeze_mlps}
            patched = patch_paths(clean, corrupt, answers, senders=senders, **how).patched
        row: list[float] = patched[layer].tolist()
        return row

    def _attribution_effects(self, i: int) -> Any:
        clean, corrupt = (self.subject.tensor(ids) for ids in (self.batches[i].clean, self.batches[i].corrupt))
        found = attribution_patch(self.subject.model, clean, corrupt, self._answers(i), positions=self._where)
        return to_matrix(found)

    def _zero_heads(self, i: int, sets: Sequence[Sequence[Head]]) -> list[dict[str, float]]:
        variants: list[list[Edit]] = [[Scale(f"z.{l}", 0.0, heads=h) for l, h in heads] for heads in sets]
        ids, answers = self.subject.tensor(self.batches[i].clean), self._answers(i)
        traced = sweep(self.subject.model, ids, variants, keep=1, batch=1)
        return [_score_task(one.logits[:, -1], answers) for one in traced]

    def _override_batch(self, batch: CaseBatch, heads: Sequence[Head]) -> dict[str, float]:
        edits: list[Edit] = [
            Attend(l, h, case.marks["END"][0], case.marks["WRONG"], 1 / len(case.marks["WRONG"]), rows=row)
            for row, case in enumerate(batch.cases)
            if case.marks.get("WRONG")
            for l, h in heads
        ]
        logits = trace(self.subject.model, self.subject.tensor(batch.clean), edits=edits, keep=1).logits[:, -1]
        return _score_task(logits, self.subject.tensor(batch.answers))

    # Shared by all batches.

    @property
    def _where(self) -> Literal["all", -1]:
        return "all" if self.spec.positions == "all" else -1

    def _over_batches(self, content: Mapping[str, Any], work: Callable[[int], Any]) -> list[Any]:
        numbered = range(len(self.batches))
        return [v for _, v in self.progress.each(numbered, lambda i: {**content, **self.batches[i].facts}, work)]

    def _caches_of(self, i: int) -> tuple[ActivationCache, ActivationCache]:
        """Activations of the clean and the corrupt run of a batch, computed once."""
        if i not in self._caches:
            model, batch = self.subject.model, self.batches[i]
            held = 2 * sum(self.batches[j].tokens for j in self._caches) * _token_bytes(self.subject)
            if held > MAX_HELD_BYTES:
                self._caches.clear()
            clean, corrupt = (run_with_cache(model, self.subject.tensor(ids)) for ids in (batch.clean, batch.corrupt))
            self._caches[i] = clean, corrupt
        return self._caches[i]

    def _answers(self, i: int) -> Tensor:
        return self.subject.tensor(self.batches[i].answers)

    def _average(self, effects: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """Mean over prompts of batch means."""
        weights = [len(batch.cases) for batch in self.batches[: len(effects)]]
        return np.average(effects, axis=0, weights=weights) if effects else np.full(size, np.nan)


def pattern_period(subject: StudiedModel) -> int:
    """Return the period that fits the model's window."""
    return min(PATTERN_PERIOD, subject.window // 2)


def draw_controls(spec: CircuitsSpec, subject: StudiedModel) -> list[tuple[int, ...]]:
    """Draw different random sets of ranks by attribution, outside the top 15 %: the controls of a knock-out.

    There are none where fewer heads are left than are knocked out.
    """
    size = subject.layers * subject.heads
    outside = range(max(spec.knockout, round(0.15 * size)), size)
    rng, draws = random.Random(f"knockout/{spec.seed}"), set[tuple[int, ...]]()
    for _ in range(100 * spec.controls if len(outside) >= spec.knockout else 0):
        draws.add(tuple(sorted(rng.sample(outside, spec.knockout))))
        if len(draws) == spec.controls:
            break
    return sorted(draws)


def _score_task(last: Tensor, answers: Tensor) -> dict[str, float]:
    """Scores of a task from last logits [B,V] and answers [B,1+w], the right one first."""
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
