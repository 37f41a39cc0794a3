"""The command `fovea ruler`: evaluates attention methods at equal bytes, exports prompts for peers, compares reports.

Knows the terminal; what is measured is in `run`, and is imported only when the command runs, because it loads torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.cli.commands.judge.options import read_json
from fovea.cli.output import Screen
from fovea.cli.text_files import read_text
from fovea.errors import Malformed
from fovea_lab.cli import Knobs, Model, PrintedForm, check_out, parse_knobs, parse_numbers, save_report

Out = Annotated[Path | None, typer.Option(help="Report as JSON; predictions (JSONL) and a PNG lie next to.")]
Export = Annotated[Path | None, typer.Option(help="Write the samples as JSONL for a peer, and stop.")]
Peers = Annotated[list[Path] | None, typer.Option("--score", help="A peer's predictions (JSONL) on the same samples.")]
Compare = Annotated[tuple[Path, Path] | None, typer.Option(help="Two reports, side by side; nothing is run.")]


@dataclass(frozen=True, slots=True)
class RulerOptions:
    """Which methods are compared, and on what."""

    method: Annotated[list[str] | None, typer.Option(help="Methods; several times for several.")] = None
    knob: Knobs = None
    budgets: Annotated[str, typer.Option(help="Bytes as shares of dense, comma-separated.")] = "0.5,0.25"
    lengths: Annotated[str, typer.Option(help="Tokens of prompt and answer, comma-separated.")] = "1024"
    tasks: Annotated[str, typer.Option(help="Names, comma-separated, `all`, or `informative`.")] = ""
    n: Annotated[int, typer.Option("--n", help="Samples per task and length.")] = 10
    questions: Annotated[int, typer.Option(help="Questions per context.")] = 1
    protocol: Annotated[str, typer.Option(help="agnostic, aware or both.")] = "agnostic"
    seed: int = 42

    def build(self) -> dict[str, Any]:
        """Return the options of an evaluation."""
        knobs = parse_knobs(self.knob)
        return {
            "methods": [{"method": name, **knobs} for name in self.method or ("snapkv",)],
            **{name: parse_numbers(getattr(self, name)) for name in ("budgets", "lengths")},
            **{name: getattr(self, name) for name in ("n", "questions", "protocol", "seed")},
        } | ({"tasks": [name.strip() for name in self.tasks.split(",")]} if self.tasks else {})


@dataclass(frozen=True, slots=True)
class Texts:
    """Sources of the samples."""

    qa: Annotated[Path | None, typer.Option(help="Questions for qa_1 and qa_2.", exists=True, dir_okay=False)] = None
    text: Annotated[Path | None, typer.Option(help="Own prose for haystacks.", exists=True, dir_okay=False)] = None

    def read(self) -> str | None:
        """Read the prose; None where none is given."""
        return None if self.text is None else read_text(self.text)


def ruler(
    model: Model = None,
    *,
    asked: RulerOptions,
    texts: Texts,
    out: Out = None,
    export: Export = None,
    score: Peers = None,
    compare: Compare = None,
    printed: PrintedForm,
) -> None:
    """Compare attention methods at equal bytes on RULER-form tasks (never with published RULER tables)."""
    screen = printed.screen
    if compare is not None:
        _compare(*compare, screen)
        return
    from fovea_lab.ruler import local, plots  # noqa: PLC0415  # load torch

    check_out(out, ".png", ".jsonl")
    options, corpus = asked.build(), texts.read()
    if export is not None:
        local.write_samples(model, options, export, qa=texts.qa, corpus=corpus)
        return
    store = None if out is None else out.with_suffix(".jsonl")
    report = local.evaluate(model, options, qa=texts.qa, corpus=corpus, store=store, peers=score or ())
    print_leaderboards(report.model_dump(by_alias=True, mode="json"), screen)
    save_report(report, out)
    if out is not None:
        out.with_suffix(".png").write_bytes(plots.draw_means(report))


def print_leaderboards(report: dict[str, Any], screen: Screen) -> None:
    """A table per protocol and length, over tasks that tell methods apart where there are any; in a pipe one of all."""
    if screen.wrote(report):
        return
    leaders = report["leaderboards"]
    shown = [one for one in leaders if one["informative"]] or leaders
    columns = ("method", "budget", "bytes", "mean", "95 %", "against dense", "worse/better", "n")
    if screen.is_tsv:
        rows = ((one["protocol"], str(one["length"]), *_format_leader(one)) for one in shown)
        screen.table(("protocol", "tokens", *columns), rows)
        return
    for protocol, length in dict.fromkeys((one["protocol"], one["length"]) for one in shown):
        same = [one for one in shown if (one["protocol"], one["length"]) == (protocol, length)]
        screen.text(f"RULER-form, {protocol}, {length:,} tokens: {', '.join(same[0]['tasks'])}")
        screen.table(columns, map(_format_leader, same))


def _format_leader(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        escape(one["method"]),
        "" if one["budget"] is None else f"{one['budget']:g}",
        f"{one['bytes']:.3f}",
        f"{one['mean']:.2f}",
        f"{one['low']:.2f} – {one['high']:.2f}",
        f"{one['difference']['mean']:+.2f}",
        f"{one['worse']}/{one['better']}",
        str(one["n"]),
    )


def _compare(first: Path, second: Path, screen: Screen) -> None:
    """Means of two reports next to each other."""
    names = ("protocol", "length", "method", "budget")
    tables = [
        {tuple(x[name] for name in names): x for x in leaders if not x["informative"]}
        for leaders in map(_read_leaders, (first, second))
    ]
    found = [
        {**dict(zip(names, key, strict=True)), "means": [rows[key]["mean"] if key in rows else None for rows in tables]}
        for key in dict.fromkeys((*tables[0], *tables[1]))
    ]
    if screen.wrote(*found):
        return
    rows = (
        (
            *("" if one[name] is None else escape(str(one[name])) for name in names),
            *("" if mean is None else f"{mean:.2f}" for mean in one["means"]),
            "" if None in one["means"] else f"{one['means'][1] - one['means'][0]:+.2f}",
        )
        for one in found
    )
    columns = ("protocol", "tokens", "method", "budget", first.stem, second.stem, "difference")
    screen.table(columns, rows)


def _read_leaders(path: Path) -> list[dict[str, Any]]:
    leaders = read_json(path, dict).get("leaderboards")
    if not isinstance(leaders, list):
        raise Malformed(f"{path.name} is not a report of `fovea ruler`.", hint="Give files that --out has written.")
    return leaders
