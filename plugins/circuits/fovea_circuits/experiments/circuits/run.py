"""Circuits experiment: which heads do a task, through which others, and what the model can't do without them.

"Interpretability in the Wild" (2022) and "Circuit Component Reuse Across Tasks in Transformer Language Models" (2024).
The measurements are in `causal/patching` and `attention/head_scores`, the tasks in `causal/circuit_tasks`.
"""

from collections.abc import Iterator

from fovea.errors import InvalidOption
from fovea_circuits import circuit_tasks
from fovea_circuits.experiments.circuits.cells import CircuitCells, draw_controls, group_cases, pattern_period
from fovea_circuits.experiments.circuits.report import CircuitFindings, build_report
from fovea_circuits.experiments.circuits.spec import PAIRS, CircuitsSpec, Receivers, TaskSpec
from fovea_circuits.patching import check_receivers
from services.interpretability.core.experiment import Cost, Experiment, Progress, probe_card
from services.interpretability.core.report import Report
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Paper


class Circuits(Experiment[CircuitsSpec]):
    """Finds the heads of a task by patching, and reports whether the model does the task at all."""

    In = CircuitsSpec
    route = "circuits"
    card = probe_card(
        "circuits",
        "Finds the circuit of heads behind a task by path patching, and tests it by knocking heads out.",
        Paper.on_arxiv(
            "Circuit Component Reuse Across Tasks in Transformer Language Models", 2024, "2310.08744", "ICLR"
        ),
        "The papers' 78 % overlap and 49.6 → 93.7 % are GPT-2 Medium's: put its folder into the weights folder.",
        "Effects need not add up to 1; some are negative or above 1.",
        task="own",
        pairs=PAIRS,
        knockout=2,
        stages=2,
    )

    def cost(self, spec: CircuitsSpec, subject: StudiedModel) -> Cost:
        of_paths = {"receivers": spec.receivers, "freeze_mlps": spec.freeze_mlps}
        if spec.method != "path" and (field := next((name for name, asked in of_paths.items() if asked), None)):
            detail = f"{field} belongs to path patching; {spec.method} measures a head's whole effect on the answer."
            raise InvalidOption(detail, hint="Leave it out, or choose the method path.", field=field)
        if spec.receivers:
            check_receivers(spec.receivers, subject.model.config)
        cases = make_cases(spec, subject)
        if subject.check_heads(spec.override, "override") and not any(case.marks.get("WRONG") for case in cases):
            detail = "override works on prompts whose wrong answers stand in them: the task colored-objects."
            raise InvalidOption(detail, field="override")
        batches = group_cases(cases, subject)
        tokens = sum(batch.tokens for batch in batches)
        total = Cost(2 * len(batches), 2 * tokens, len(batches))
        if spec.method == "attribution":
            total += Cost(2 * len(batches), 2 * tokens, len(batches))
        else:
            stages = spec.stages if spec.method == "path" else 1
            cells = len(batches) * subject.layers * stages
            total += Cost(0, 0, cells, partial=tokens * subject.layers * subject.heads * stages // 2)
        variants = bool(spec.knockout) * (1 + len(draw_controls(spec, subject))) + bool(spec.override)
        total += Cost(variants * len(batches), variants * tokens, bool(spec.knockout) * len(batches))
        return total + Cost(1, 2 * pattern_period(subject), 1)

    def run(self, spec: CircuitsSpec, subject: StudiedModel, progress: Progress) -> Report:
        cases = make_cases(spec, subject)
        cells = CircuitCells(spec, subject, progress, group_cases(cases, subject))
        findings = CircuitFindings(cases=cases, task=cells.measure_task(), groups=subject.model.config.kv_heads)
        for name, receivers in _stages(spec, findings):
            if progress.stopped or receivers == []:
                break
            findings.stages[name] = cells.measure_stage(receivers, findings)
            findings.receivers[name] = receivers
        if not progress.stopped:
            findings.patterns = cells.measure_patterns()
        if spec.knockout and not progress.stopped:
            findings.knockout = cells.measure_knockout(findings)
        if spec.override and not progress.stopped:
            findings.overridden = cells.measure_override()
        return build_report(spec, findings)


def make_cases(spec: TaskSpec, subject: StudiedModel) -> list[circuit_tasks.Case]:
    """Return the prompts of the task; `InvalidOption` if the tokenizer does not fit the task, or `pairs` is missing."""
    if spec.task == "own":
        if not (cases := circuit_tasks.parse_pairs(subject, spec.pairs or "")):
            raise InvalidOption("The task own needs at least one line in pairs.", field="pairs")
        return cases
    if spec.task == "ioi":
        return circuit_tasks.make_indirect_objects(subject, spec.prompts, spec.seed, spec.counterfactual)
    return circuit_tasks.make_coloured_objects(subject, spec.prompts, spec.seed)


def _stages(spec: CircuitsSpec, findings: CircuitFindings) -> Iterator[tuple[str, Receivers]]:
    """Stage names with their receivers; later ones follow from what earlier ones found (section 2, discovery)."""
    yield ("final", "final") if not spec.receivers else ("receivers", list(spec.receivers))
    if spec.method != "path" or spec.receivers:
        return
    later = (("final", "q of movers", "q"), ("q of movers", "v", "v"), ("v", "k", "k"))
    for before, name, part in later[: spec.stages - 1]:
        yield name, findings.receivers_after(before, part, spec.fraction)
