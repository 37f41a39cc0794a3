"""Commands of `fovea judge` that label pairs, one or many; prompt templates and calibrations."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.call import Call, quote_id, read_bytes
from fovea.cli.commands.judge.options import (
    Llm,
    Output,
    build_call,
    compute,
    fetch,
    format_figure,
    read_json,
    read_runs,
)
from fovea.cli.common_options import GatewayOptions
from fovea.cli.job_progress import run_as_job
from fovea.cli.output import Screen
from fovea.cli.text_files import read_text, write_text
from fovea.errors import Malformed


@dataclass(frozen=True, slots=True)
class JudgeChoice:
    """Judge, prompt template and calibration."""

    judge: Annotated[str | None, typer.Option("--judge", "-j", help="prompted-grade, log-odds …")] = None
    template: Annotated[
        str | None, typer.Option("--template", "-t", help="Prompt template; `fovea judge templates` lists them.")
    ] = None
    llm: Llm = None
    calibration: Annotated[str | None, typer.Option(help="Stored calibration: name or name@version.")] = None

    @property
    def options(self) -> dict[str, str]:
        """The judge's options that were given."""
        found = {"template": self.template, "llm": self.llm, "calibration": self.calibration}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class PairSource:
    """Where the pairs of a batch come from."""

    topics: Annotated[Path | None, typer.Option(help="qid<TAB>text lines, or JSON lines.")] = None
    passages: Annotated[Path | None, typer.Option(help="JSON lines with id and text.")] = None
    runs: Annotated[list[Path] | None, typer.Option("--run", help="TREC run; may be repeated.")] = None
    depth: Annotated[int, typer.Option("--depth", "-k", min=1, help="Ranks to take from each run.")] = 10
    qrels: Annotated[Path | None, typer.Option(help="Existing labels; only the missing pairs are labelled.")] = None
    pairs: Annotated[Path | None, typer.Option(help="JSON lines with qid, docid, query, passage.")] = None

    def read(self) -> dict[str, Any]:
        """Read the files, as fields of a batch."""
        return {
            **{name: read_text(getattr(self, name)) for name in ("topics", "passages", "pairs", "qrels")},
            "runs": read_runs(self.runs),
            "depth": self.depth,
        }


@dataclass(frozen=True, slots=True)
class SpendingLimits:
    """How much a batch may use."""

    budget_tokens: Annotated[int | None, typer.Option("--budget", help="Maximum number of tokens to spend.")] = None
    per_minute: Annotated[float | None, typer.Option(help="Maximum number of pairs per minute.")] = None
    at_once: Annotated[int, typer.Option(min=1, max=32, help="Pairs at a time.")] = 4


_FORMATS = {".jsonl": "jsonl", ".csv": "csv"}
_OWNER = {"template": "template", "model": "llm"}


def pair(
    query: Annotated[str, typer.Argument(help="The query.")],
    passage: Annotated[str, typer.Argument(help="The passage; - is standard input.")],
    *,
    choice: JudgeChoice,
    rationale: Annotated[bool, typer.Option("--rationale", help="Show the full answer of the model.")] = False,
    gateway: GatewayOptions,
) -> None:
    """Grade one passage for one query; the exit code is 1 if there is no grade."""
    screen, text = gateway.screen, read_text(Path("-")) if passage == "-" else passage
    body = {"model": choice.judge, "pairs": [{"query": query, "passage": text}], "rationale": rationale or None}
    with gateway.open() as client:
        answer = client.run("judge", {**body, **choice.options})
    verdict = answer["results"][0]
    if not screen.wrote(verdict):
        _print_verdict(screen, answer["model"], verdict)
    if verdict["grade"] is None:
        raise typer.Exit(1)


def batch(
    *,
    source: PairSource,
    choice: JudgeChoice,
    more: Annotated[Path | None, typer.Option("--options", help="JSON file with further options of the judge.")] = None,
    limits: SpendingLimits,
    output: Output = None,
    gateway: GatewayOptions,
) -> None:
    """Label many pairs as a job; the suffix of -o (x.qrels, x.jsonl, x.csv) is the format. Run it again to continue.

    The pairs are those of --pairs, or the top of each --run, or every topic with every passage.
    """
    body = {
        "model": choice.judge,
        "options": {**(read_json(more, dict) if more else {}), **choice.options},
        **source.read(),
        **asdict(limits),
    }
    screen = gateway.screen
    with gateway.open() as client:
        done = run_as_job(client, screen, build_call("batches", body))
        if output is not None:
            suffix = output.with_suffix("").suffix if output.suffix == ".gz" else output.suffix
            params = {"form": _FORMATS.get(suffix, "qrels")}
            write_text(output, client.send(Call("GET", f"/v1/judge/batches/{done['id']}", read_bytes, params=params)))
    if not screen.wrote(done):
        _print_summary(screen, done, output)
    if done["failed"] or done["left"]:
        raise typer.Exit(1)


def templates(
    name: Annotated[str | None, typer.Argument(help="Show this template.")] = None,
    query: Annotated[str, typer.Option(help="With a name: the text to fill in.")] = "",
    passage: Annotated[str, typer.Option(help="With a name: the text to fill in.")] = "",
    *,
    gateway: GatewayOptions,
) -> None:
    """List the prompt templates, or show one, filled in with a query and a passage; nothing is sent."""
    screen = gateway.screen
    if name is not None:
        filled = {"query": query or "{query}", "passage": passage or "{passage}"}
        shown = compute(f"templates/{quote_id(name)}/render", gateway, **filled)
        if not screen.wrote(shown):
            screen.text("\n\n".join(filter(None, [shown["system"], *("\n".join(turn) for turn in shown["turns"])])))
        return
    found = [{"id": one["template"]["id"], **one} for one in fetch("templates", gateway)]
    if screen.wrote(*found):
        return
    rows = ((one["id"], one["template"]["kind"], one["digest"], one["template"]["summary"]) for one in found)
    screen.table(("template", "kind", "digest", "what it does"), (tuple(map(escape, row)) for row in rows), head=False)


def calibrate(
    signals: Annotated[Path, typer.Argument(metavar="BATCH.jsonl", help="Labels of a batch with their signals.")],
    reference: Annotated[Path, typer.Argument(metavar="QRELS", help="Labels to fit the cuts to.")],
    name: Annotated[str | None, typer.Option(help="Store the calibration under this name.")] = None,
    how: Annotated[str, typer.Option(help="quantile or kappa.")] = "quantile",
    *,
    gateway: GatewayOptions,
) -> None:
    """Fit the thresholds that turn a judge's signal into grades; evaluated on queries that were left out."""
    screen, training = gateway.screen, _build_training(read_text(signals), read_text(reference))
    found = compute("calibrations", gateway, how=how, name=name, **training)
    if screen.wrote(found):
        return
    cuts = found["calibration"]
    screen.facts({
        "calibration": found["called"], "cuts": ", ".join(f"{cut:.4f}" for cut in cuts["cuts"]),
        "fitted on": f"{cuts['pairs']} pairs of {cuts['queries']} queries",
        **{name: format_figure(value) for name, value in cuts["metrics"].items()},
    })  # fmt: skip
    for warning in cuts["warnings"]:
        screen.note(f"[yellow]{escape(warning)}[/]")


def _build_training(lines: str, qrels: str) -> dict[str, Any]:
    """Build training data of those labelled pairs that have a reference label."""
    truth: dict[tuple[str, str], int] = {}
    for number, line in enumerate(qrels.splitlines(), 1):
        if fields := line.split():
            if len(fields) != 4 or not fields[3].removeprefix("-").isdecimal():
                raise Malformed(f"Line {number} of the labels to fit to is not `qid 0 docid grade`.")
            grade = min(max(int(fields[3]), 0), 3)  # onto the scale, as measures of judges do
            if truth.setdefault((fields[0], fields[2]), grade) != grade:
                raise Malformed(f"Line {number} of the labels to fit to labels its pair again, with another grade.")
    try:
        rows = [json.loads(line) for line in lines.split("\n") if line.strip()]
        signals = {(str(row["qid"]), str(row["docid"])): row for row in rows if row.get("signal") is not None}
        labelled = {pair: row for pair, row in signals.items() if pair in truth}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Malformed("The labels of the batch are not JSON lines.", hint="Write them with -o x.jsonl.") from error
    seen = {name: {row.get(field) for row in labelled.values()} for name, field in _OWNER.items()}
    return {
        "signals": [row["signal"] for row in labelled.values()],
        "grades": [truth[pair] for pair in labelled],
        "queries": [qid for qid, _ in labelled],
        "pairs": [" ".join(pair) for pair in labelled],
        **{name: next(iter(values)) if len(values) == 1 else None for name, values in seen.items()},
    }


def _print_verdict(screen: Screen, judge: str, verdict: dict[str, Any]) -> None:
    grade = "no grade" if verdict["grade"] is None else f"grade {verdict['grade']}"
    screen.title(f"[bold]{grade}[/]  {escape(judge)}")
    screen.facts({
        **({"judge": judge, "grade": verdict["grade"]} if screen.form == "csv" else {}),  # which has no title
        **{name: verdict[name] for name in ("reason", "signal", "expected", "votes", "template")},
        "language model": verdict["llm"], "calibration": verdict["calibration"], "tokens": verdict["tokens"] or None,
        "flags": ", ".join(verdict["flags"]), "answer": verdict["answer"],
    })  # fmt: skip
    for text in verdict["rationale"] or ():
        screen.title(escape(text))


def _print_summary(screen: Screen, done: dict[str, Any], output: Path | None) -> None:
    counts = ", ".join(f"{count} × {grade}" for grade, count in enumerate(done["counts"]))
    screen.facts({
        "batch": done["id"], "judge": done["judge"], "language model": ", ".join(done["answered_by"]),
        "pairs": f"{done['pairs']}, {done['graded']} graded ({counts})", "invalid": done["invalid"] or None,
        "not calibrated": f"{done['uncalibrated']} with a signal and no grade" if done["uncalibrated"] else None,
        "failed": done["failed"] or None, "left": done["left"] or None, "stopped": done["stopped"],
        "labelled before": done["reused"] or None, "tokens": done["tokens"] or None, "cost": done["cost"],
        "written": output,
    })  # fmt: skip
    for detail, count in done["errors"].items():
        screen.note(f"[red]{count} ×[/] {escape(detail)}")
    for note in done["notes"]:
        screen.note(f"[yellow]{escape(note)}[/]")
