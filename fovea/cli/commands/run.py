"""`fovea run TASK [FILE …] --option value`: runs any task; its options come from the schema of the model."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.option_groups import CommandApp, declare_parameters
from fovea.cli.output import Screen
from fovea.cli.schema_options import list_picture_fields, parse_options, parse_pair, split_arguments
from fovea.cli.text_files import write_file
from fovea.errors import InvalidOption

MODEL_OPTIONS = {"ignore_unknown_options": True}
"""Typer keeps options that it does not know, which are the served model's, among the arguments."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Form and place of the answer."""

    accept: Annotated[str | None, typer.Option(help="Media type of the answer, for example image/png.")] = None
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write the answer to.")] = None
    job: Annotated[bool, typer.Option("--job", help="Queue the request and print the job.")] = False


def run(
    task: Annotated[str, typer.Argument(metavar="TASK", help="For example classify; `fovea models` lists tasks.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Files for the picture fields of the model, in order.")
    ] = None,
    model: Model = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-O", metavar="NAME=VALUE", help="An option of the model.")
    ] = None,
    *,
    form: AnswerForm,
    gateway: GatewayOptions,
) -> None:
    """Run any task; further options are those of the model.

    [bold]fovea models ID[/] lists a model's options; write them as --top-k 3.
    """
    screen = gateway.screen
    if form.job and form.output is not None:
        hint = "Write it with `fovea jobs result ID -o FILE` once the job has ended."
        raise InvalidOption("--job has no answer to write yet.", hint=hint, field="output")
    if screen.form in {"tsv", "csv"}:
        raise InvalidOption("An answer can't be table rows.", hint="Use --format json.", field="format")
    with gateway.open() as client:
        name = model or client.default_model(task)
        schema = client.model(name).request_schema
        files, texts = split_arguments(arguments or [], schema)
        request = {"model": name, **parse_options([*texts, *map(parse_pair, option or ())], schema)}
        pictures = dict(zip(_match_fields(schema, files), files, strict=True))
        for twice in pictures.keys() & request.keys():
            raise InvalidOption(f"{twice} was given twice: as {pictures[twice]!r} and as an option.", field=twice)
        if form.job:
            screen.line(client.jobs.submit(task, request, pictures=pictures, accept=form.accept))
            return
        answer = client.run(task, request, pictures=pictures, accept=form.accept)
    _write_answer(screen, answer, form.output)


def make_task_app(task: str, help_text: str) -> CommandApp:
    """Make an app of one command, which runs one task; its options are those of `run` and of the served model."""

    def command(**options: Any) -> None:
        run(task=task, **options)

    command.__name__, command.__doc__ = task, help_text
    shared = [one for one in inspect.signature(run, eval_str=True).parameters.values() if one.name != "task"]
    app = CommandApp(add_completion=False)
    app.command(task, no_args_is_help=True, context_settings=MODEL_OPTIONS)(declare_parameters(command, shared))
    return app


def _match_fields(schema: dict[str, Any], files: list[str]) -> list[str]:
    fields = list_picture_fields(schema)
    if len(files) > len(fields):
        detail = f"{len(files)} files were given; this model takes {len(fields)}."
        raise InvalidOption(detail, hint=f"Its picture fields are: {', '.join(fields) or 'none'}.")
    return fields[: len(files)]


def _write_answer(screen: Screen, answer: Any, output: Path | None) -> None:
    if output is not None or isinstance(answer, bytes):
        write_file(output, answer if isinstance(answer, bytes) else f"{screen.format_json(answer)}\n".encode())
        if output is not None:
            screen.note(f"wrote {output}", markup=False)
    elif not screen.wrote(answer):
        screen.text(screen.format_json(answer))
