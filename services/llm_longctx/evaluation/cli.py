"""The verbs `fovea needle` and `fovea fidelity`: plug-ins of the command line that judge a method on this machine.

Knows the terminal; what is measured, `evaluation` knows. Torch loads only when a verb runs.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from shared.errors import InvalidOption, Malformed

__all__ = ["fidelity", "needle"]

Model = Annotated[str | None, typer.Option(help="A served name, a Hugging Face folder or a GGUF file.")]
Longctx = Annotated[str, typer.Option(help='Method and knobs as JSON, for example \'{"method": "power"}\'.')]
Method = Annotated[str | None, typer.Option(help="The method by name; `fovea methods` lists them.", show_default=False)]
Knobs = Annotated[
    list[str] | None, typer.Option("--knob", "-K", metavar="NAME=VALUE", help="A knob of the method, or a budget.")
]
Lengths = Annotated[str, typer.Option(help="Tokens of the prompts, comma-separated.")]
Text = Annotated[
    Path | None, typer.Option(help="Own text; left out, Python's help topics.", exists=True, dir_okay=False)
]
Steps = Annotated[int, typer.Option(help="Tokens of an answer.")]
Out = Annotated[Path | None, typer.Option(help="Write the report here as JSON, and a grid as PNG beside it.")]


def needle(
    model: Model = None,
    longctx: Longctx = "{}",
    method: Method = None,
    knob: Knobs = None,
    lengths: Lengths = "512,1024,2048",
    depths: Annotated[str, typer.Option(help="Percent, comma-separated.")] = "0,50,100",
    text: Text = None,
    steps: Steps = 40,
    seed: int = 0,
    out: Out = None,
) -> None:
    """Hide sentences in long prompts and see how much of them comes back."""
    report = _run(
        "needle",
        model,
        _asked(longctx, method, knob),
        text,
        {"lengths": _numbers(lengths), "depths": _numbers(depths), "steps": steps, "seed": seed},
    )
    table = Table("depth \\ tokens", *map(str, report["lengths"]), title=f"recall, mean {report['mean']:.2f}")
    for depth, row in zip(report["depths"], report["recall"], strict=True):
        table.add_row(f"{depth:g} %", *(f"{x:.2f}" for x in row))
    Console().print(table)
    _save(report, out)
    if out is not None:
        heat = importlib.import_module("services.llm_longctx.evaluation.heatmap")
        rows = [f"{d:g} %" for d in report["depths"]]
        out.with_suffix(".png").write_bytes(heat.heat_map(report["recall"], rows, list(map(str, report["lengths"]))))


def fidelity(
    model: Model = None,
    longctx: Longctx = "{}",
    method: Method = None,
    knob: Knobs = None,
    lengths: Lengths = "512,1024,2048",
    text: Text = None,
    steps: Steps = 64,
    seed: int = 0,
    out: Out = None,
) -> None:
    """Compare a method with dense attention on the same tokens: KL, agreement and perplexity."""
    report = _run(
        "fidelity",
        model,
        _asked(longctx, method, knob),
        text,
        {"lengths": _numbers(lengths), "steps": steps, "seed": seed},
    )
    table = Table("task", "tokens", "KL (nats)", "top-1 agreement", "perplexity dense", "perplexity", "right")
    for row in report["rows"]:
        table.add_row(
            row["task"],
            str(row["length"]),
            f"{row['kl']:.4f}",
            f"{row['agreement']:.3f}",
            f"{row['perplexity_dense']:.2f}",
            f"{row['perplexity']:.2f}",
            f"{row['right']:.3f}",
        )
    Console().print(table)
    _save(report, out)


def _run(kind: str, model: str | None, longctx: Any, text: Path | None, asked: dict[str, Any]) -> dict[str, Any]:
    """Load a model, evaluate, and let it go."""
    quality = importlib.import_module("services.llm_longctx.evaluation.method_quality")
    models = importlib.import_module("services.llm_longctx.serving.local_models")
    settings = importlib.import_module("shared.settings").settings()
    place = importlib.import_module("shared.serving.device_placement").load_context(settings)
    chosen = models.chosen(model or settings.llm_model)
    loaded = next((cls for name, cls in chosen.items() if name.startswith(model or settings.llm_model)), None)
    loaded = (loaded or next(iter(chosen.values()))).load(place)
    words = None if text is None else text.read_text("utf-8")
    try:
        spec: BaseModel = getattr(quality, f"{kind.capitalize()}Spec").model_validate(
            asked | {"longctx": longctx, "text": words}
        )
        with Progress(transient=True) as bar:
            task = bar.add_task(kind, total=1.0)
            run = importlib.import_module("shared.registry").CallContext(
                report=lambda share, note: bar.update(task, completed=share, description=note or kind)
            )
            report = getattr(quality, f"run_{kind}")(loaded.speaker, spec, run)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidOption(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
    finally:
        loaded.close()
    facts: dict[str, Any] = report.model_dump(mode="json")
    return facts


def _numbers(given: str) -> list[float]:
    try:
        return [float(part) if "." in part else int(part) for part in given.split(",") if part.strip()]
    except ValueError as error:
        raise InvalidOption(f"{given!r} is no comma-separated list of numbers.") from error


def _asked(longctx: str, method: str | None, knobs: list[str] | None) -> Any:
    """The method and its knobs, from JSON and from options of their own, which win."""
    asked = _parsed(longctx)
    if not isinstance(asked, dict):
        raise Malformed("--longctx is no JSON object.", hint='For example {"method": "power"}.')
    return asked | ({} if method is None else {"method": method}) | dict(map(_knob, knobs or ()))


def _knob(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`; what is JSON is read as JSON, and the method checks the rest."""
    name, equals, value = text.partition("=")
    if not equals:
        raise Malformed(f"--knob {text!r} has no value.", hint="Write -K name=value.")
    try:
        return name.replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        return name.replace("-", "_"), value


def _parsed(given: str) -> Any:
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise Malformed(f"--longctx is no JSON: {error}.", hint='For example {"method": "power"}.') from error


def _save(report: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
