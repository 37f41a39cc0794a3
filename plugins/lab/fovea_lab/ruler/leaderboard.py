"""Leaderboard page of a RULER-form report, as Markdown. Knows reports only."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fovea_lab.ruler.report import Cell, Leader, RulerReport

TOLERANCE = 0.05
"""Methods that hold less than the budget by more than this share of it are marked."""

FEW = 40
"""Answers per row under which nothing can be ranked."""


def write_page(reports: Sequence[RulerReport], machine: str, costs: Mapping[str, float] | None = None) -> str:
    """The page: a section per report, ranked by budget, then every task.

    Args:
        reports: The evaluations.
        machine: Where they ran.
        costs: Time in which a method reads a context of the first, times dense's.
    """
    spec = reports[0].spec
    cut = f", answers cut at {spec['max_answer']} tokens" if spec.get("max_answer") else ""
    lines = [
        "# Leaderboard: attention methods at equal bytes",
        "",
        "`make bench ARGS=ruler` writes this page. RULER-form: tasks, counts, placement and metric are RULER's; prose,",
        "words and seeds are not, so these numbers compare methods here and **never with published RULER tables**.",
        "Agnostic: a method compresses the context, then the question comes; aware: it compresses both. Budgets are",
        "shares of the bytes that dense holds of what is compressed, whole pages counted; knobs follow by rules, never",
        f"from these samples. {machine}; seed {spec.get('seed')}{cut}.",
        "Marked †: more than 5 % under the budget, because pages are whole.",
        "Prefills: time to read one context that nobody has read, times dense's (median of three rounds).",
        "Intervals: 95 % bootstrap. kvpress (0.5.4) and vLLM have the same prompts and weights; bytes (*) are entries.",
        "",
        "![Mean score over bytes of dense, of the six best methods](images/ruler.png)",
    ]
    for at, report in enumerate(reports):
        lines += _rankings(report, (costs or {}) if not at else {})
    return "\n".join(lines) + "\n"


def _rankings(report: RulerReport, costs: Mapping[str, float]) -> Iterator[str]:
    shown = [one for one in report.leaderboards if one.informative] or report.leaderboards
    facts, spec = report.manifest, report.spec
    for protocol, length in dict.fromkeys((one.protocol, one.length) for one in shown):
        rows = [one for one in shown if (one.protocol, one.length) == (protocol, length)]
        yield from ("", f"## {facts.get('model')}, {length:,} tokens, {protocol}", "")
        yield f"{facts.get('dtype')}, pages of {facts.get('page')} entries, {spec.get('n')} samples a task."
        known = report.informative.get(str(length)) or rows[0].tasks
        yield f"Over the tasks that dense can do (lower bound ≥ 0.2), of equal weight: {', '.join(known)}."
        if all(one.n < FEW for one in rows):
            yield f"**Fewer than {FEW} answers a row: this shows that everything runs, and ranks nothing.**"
        for budget in sorted({one.budget for one in rows}, key=lambda budget: -(budget or math.inf)):
            mine = [one for one in rows if one.budget == budget]
            title = "Without a budget" if budget is None else f"{budget:g} of dense's bytes"
            yield from ("", f"### {title}", "", *_list_rows(mine, costs))
    yield from _tasks(report)


def _list_rows(rows: Iterable[Leader], costs: Mapping[str, float]) -> Iterator[str]:
    yield "| method | bytes | mean | 95 % | against dense | worse / better | n | prefills |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in sorted(rows, key=lambda one: -one.mean):
        cost = costs.get(one.method)
        yield f"{_write_row(one)} {'' if cost is None else f'{cost:.2f}'} |"


def _write_row(one: Leader) -> str:
    is_under = one.budget is not None and one.bytes < (1 - TOLERANCE) * one.budget
    held = f"{one.bytes:.3f}" + (" *" if one.nominal else "") + (" †" if is_under else "")
    low, high = one.difference.low, one.difference.high
    return (
        f"| {one.method} | {held} | {one.mean:.2f} | {one.low:.2f} – {one.high:.2f} | {one.difference.mean:+.2f} "
        f"({low:+.2f} – {high:+.2f}) | {one.worse} / {one.better} | {one.n} |"
    )


def _tasks(report: RulerReport) -> Iterator[str]:
    measured = [cell for cell in report.cells if cell.mean is not None]
    tasks = list(dict.fromkeys(cell.task for cell in measured))
    if len(tasks) > 1:
        yield from ("", "### Every task", "", f"| method | budget | {' | '.join(tasks)} |")
        yield "|---|---|" + "---|" * len(tasks)
    by_key: dict[tuple[str, float | None], dict[str, Cell]] = {}
    for cell in measured:
        by_key.setdefault((cell.method, cell.budget), {})[cell.task] = cell
    for (name, budget), cells in sorted(by_key.items(), key=lambda x: (-(x[0][1] or 2), x[0][0])):
        scores = [f"{cells[task].mean:.2f}" if task in cells else "" for task in tasks]
        if len(tasks) > 1:
            yield f"| {name} | {'' if budget is None else f'{budget:g}'} | {' | '.join(scores)} |"
    reasons = list(dict.fromkeys((c.method, c.budget, c.reason) for c in report.cells if c.reason))
    if reasons:
        yield from ("", "Budgets that a method can't meet:", "")
        yield from (f"* {name} at {budget:g}: {reason}" for name, budget, reason in reasons)
