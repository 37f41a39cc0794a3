"""Shared parts of the commands of `fovea judge`: options, sending a body, figures and intervals as text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fovea import call
from fovea.cli.common_options import Connection, GatewayOptions
from fovea.cli.job_progress import run_as_job
from fovea.cli.text_files import read_text
from fovea.errors import Malformed

Reference = Annotated[Path, typer.Argument(metavar="REFERENCE", help="Qrels by people; may be .gz.")]
JudgeLabels = Annotated[Path, typer.Argument(metavar="JUDGE", help="JSON lines of a batch, a run, or qrels.")]
Topics = Annotated[Path, typer.Option(help="qid<TAB>text lines, or JSON lines.")]
Passages = Annotated[Path, typer.Option(help="JSON lines with id and text.")]
Llm = Annotated[str | None, typer.Option(help="Language model at the judge's endpoint.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write to.")]

Kind = TypeVar("Kind", dict[str, Any], list[Any])


def compute(what: str, gateway: Connection, /, **options: Any) -> Any:
    """Send options to `/v1/judge/<what>`, files as their texts; return the JSON answer."""
    return gateway.send(build_call(what, options))


def compute_as_job(what: str, gateway: GatewayOptions, /, **options: Any) -> Any:
    """The same as a job with its progress: for what may take longer than a request."""
    with gateway.open() as client:
        return run_as_job(client, gateway.screen, build_call(what, options))


def build_call(what: str, options: dict[str, Any]) -> call.Call[Any]:
    """Build the call of `compute`; options that are None are left out."""
    given = {name: value for name, value in options.items() if value is not None}
    texts = {name: read_text(value) for name, value in given.items() if isinstance(value, Path)}
    return call.Call("POST", f"/v1/judge/{what}", call.read_json, json=given | texts)


def fetch(what: str, gateway: Connection, /, **params: str | int | None) -> Any:
    """Fetch something that is stored."""
    return gateway.send(call.Call("GET", f"/v1/judge/{what}", call.read_json, params=params))


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """Read a JSON file of an object or a list; Malformed if it holds something else."""
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise Malformed(f"{path.name} is not JSON.") from error
    if not isinstance(found, kind):
        raise Malformed(f"{path.name} is not a JSON {'object' if kind is dict else 'list'}.")
    return found


def read_runs(paths: list[Path] | None) -> str:
    """Read run files as one text; a file may end without a line break."""
    return "\n".join(map(read_text, paths or ()))


def read_judges(paths: Sequence[Path]) -> dict[str, str]:
    """Read judges' labels, each named after its file, or by the whole path where two files have one name."""
    names = [path.name.removesuffix(".gz").rsplit(".", 1)[0] for path in paths]
    kept = [name if names.count(name) == 1 else str(path)[-120:] for name, path in zip(names, paths, strict=True)]
    return dict(zip(kept, map(read_text, paths), strict=True))


def format_figure(value: float | str | None) -> str:
    """Format a number with four decimals, a count as it is; a dash where it is undefined."""
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def format_interval(ends: list[float] | None) -> str:
    """Format the ends of an interval with three decimals; nothing where there is none."""
    return f"{ends[0]:.3f} … {ends[1]:.3f}" if ends else ""
