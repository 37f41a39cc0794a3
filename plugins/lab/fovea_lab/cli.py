"""The commands `fovea needle` and `fovea fidelity`: command-line plug-ins that evaluate an attention method locally.

Knows the terminal; `local_run` measures, and is imported only when a command runs, because it loads torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.markup import escape

from fovea.cli.common_options import AsJson, Form
from fovea.cli.output import Screen
from fovea.cli.schema_options import parse_options, parse_pair
from fovea.cli.text_files import read_text
from fovea.errors import InvalidOption, Malformed
from fovea_lab.heatmap import draw_heatmap

Model = Annotated[str | None, typer.Option(help="A served name, a Hugging Face folder or a GGUF file.")]
Knobs = Annotated[
    list[str] | None, typer.Option("--knob", "-K", metavar="NAME=VALUE", help="A knob of the method, or a budget.")
]
Lengths = Annotated[str, typer.Option(help="Tokens of the prompts, comma-separated.")]
Text = Annotated[
    Path | None, typer.Option(help="Own text; left out, Python's help topics.", exists=True, dir_okay=False)
]
Steps = Annotated[int, typer.Option(help="Tokens of an answer.")]
Out = Annotated[Path | None, typer.Option(help="Write the report here as JSON, and a grid as PNG next to it.")]
JsonOut = Annotated[Path | None, typer.Option(help="Write the report here as JSON.")]


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """The language model, and the method that it runs with."""

    model: Model = None
    longctx: Annotated[str, typer.Option(help='Method and knobs as JSON, for example \'{"method": "power"}\'.')] = "{}"
    method: Annotated[str | None, typer.Option(help="The method by name; `fovea methods` lists them.")] = None
    knob: Knobs = None

    def build(self) -> dict[str, Any]:
        """Return the method with its knobs, from JSON and from options of their own, which win."""
        options = _parse(self.longctx)
        if not isinstance(options, dict):
            raise Malformed("--longctx is not a JSON object.", hint='For example {"method": "power"}.')
        options |= {} if self.method is None else {"method": self.method}
        return options | parse_knobs(self.knob)


@dataclass(frozen=True, slots=True)
class PrintedForm:
    """How a report is printed."""

    json_lines: AsJson = False
    form: Form = None

    @property
    def screen(self) -> Screen:
        """Where the command writes. Raises InvalidOption: there is no such form."""
        return Screen(self.form, as_json=self.json_lines)


def needle(
    *,
    tested: MethodOptions,
    lengths: Lengths = "512,1024,2048",
    depths: Annotated[str, typer.Option(help="Percent, comma-separated.")] = "0,50,100",
    text: Text = None,
    steps: Steps = 40,
    seed: int = 0,
    out: Out = None,
    printed: PrintedForm,
) -> None:
    """Hide sentences in long prompts and measure how much of them the model recalls."""
    from fovea_lab import local_run, method_quality  # noqa: PLC0415  # loads torch

    screen = printed.screen
    check_out(out, ".png")
    options = {"lengths": parse_numbers(lengths), "depths": parse_numbers(depths), "steps": steps, "seed": seed}
    options |= _request(tested, text)
    report = local_run.run_local(method_quality.run_needle, method_quality.NeedleRequest, tested.model, options)
    rows, columns = [f"{depth:g} %" for depth in report.depths], list(map(str, report.lengths))
    if not screen.wrote(report.model_dump(mode="json", by_alias=True)):
        screen.note(f"[bold]recall, mean {report.mean:.2f}[/]")
        cells = ((label, *(f"{x:.2f}" for x in row)) for label, row in zip(rows, report.recall, strict=True))
        screen.table(("depth \\ tokens", *columns), cells)
    save_report(report, out)
    if out is not None:
        out.with_suffix(".png").write_bytes(draw_heatmap(report.recall, rows, columns))


def fidelity(
    *,
    tested: MethodOptions,
    lengths: Lengths = "512,1024,2048",
    text: Text = None,
    steps: Steps = 64,
    seed: int = 0,
    out: JsonOut = None,
    printed: PrintedForm,
) -> None:
    """Compare a method with dense attention on the same tokens: KL, agreement and perplexity."""
    from fovea_lab import local_run, method_quality  # noqa: PLC0415  # loads torch

    screen = printed.screen
    options = {"lengths": parse_numbers(lengths), "steps": steps, "seed": seed}
    options |= _request(tested, text)
    report = local_run.run_local(method_quality.run_fidelity, method_quality.FidelityRequest, tested.model, options)
    if not screen.wrote(report.model_dump(mode="json", by_alias=True)):
        columns = ("task", "tokens", "KL (nats)", "top-1 agreement", "perplexity dense", "perplexity", "right")
        rows = (
            (
                escape(row.task),
                str(row.length),
                f"{row.kl:.4f}",
                f"{row.agreement:.3f}",
                f"{row.perplexity_dense:.2f}",
                f"{row.perplexity:.2f}",
                f"{row.right:.3f}",
            )
            for row in report.rows
        )
        screen.table(columns, rows)
    save_report(report, out)


def parse_numbers(given: str) -> list[float]:
    """Comma-separated numbers."""
    try:
        return [float(part) if "." in part else int(part) for part in given.split(",") if part.strip()]
    except ValueError as error:
        raise InvalidOption(f"{given!r} is not a comma-separated list of numbers.") from error


def _request(tested: MethodOptions, text: Path | None) -> dict[str, Any]:
    return {"longctx": tested.build(), "text": None if text is None else read_text(text)}


def parse_knobs(given: list[str] | None) -> dict[str, Any]:
    """Settings `NAME=VALUE`; what is JSON is read as JSON, and the method checks the rest."""
    return parse_options((parse_pair(text, "--knob") for text in given or ()), {})


def _parse(given: str) -> Any:
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise Malformed(f"--longctx is no JSON: {error}.", hint='For example {"method": "power"}.') from error


def check_out(out: Path | None, *beside: str) -> None:
    """Refuse a report under the name of a file that lies next to it: InvalidOption."""
    if out is not None and out.suffix in beside:
        detail = f"{out.name} is the report's own name for what lies next to it, which would be lost."
        raise InvalidOption(detail, hint=f"Try --out {out.stem}.json.", field="--out")


def save_report(report: BaseModel, out: Path | None) -> None:
    """Write a report as JSON where a file is named."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(report.model_dump_json(indent=1, by_alias=True) + "\n", "utf-8")
