"""Reference pages that are written from the code: the client library, the command line and the errors."""

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from typer.main import get_command

import fovea
from fovea import errors
from fovea.call import Sends
from fovea.cli.main import app
from fovea.cli.plugins import GROUP, load_plugin
from fovea.client import Jobs
from fovea.lora import LoraAdapters
from fovea.plugins import entries
from fovea.steering import Captures, SteeringVectors

SENDING = {
    "client": fovea.Client,
    "client.jobs": Jobs,
    "client.steering_vectors": SteeringVectors,
    "client.lora_adapters": LoraAdapters,
    "client.captures": Captures,
}
"""How a client and its parts are reached → the class with methods that send what a function builds."""


@cache
def render_reference() -> dict[str, str]:
    """Text of each reference page, by its path in the site."""
    return {
        "reference/sdk.md": "\n".join(_render_sdk()),
        "reference/cli.md": "\n".join(_render_commands()),
        "reference/errors.md": "\n".join(_render_errors()),
    }


def _render_sdk() -> Iterator[str]:
    yield "# Client library\n\n```sh\npip install fovea-serve\n```\n"
    for name in fovea.__all__:
        yield f"::: {getattr(fovea, name).__module__}.{name}\n"
    yield "## Methods of both clients\n\nThose of `AsyncClient` must be awaited.\n"
    for path, kind in SENDING.items():
        for name in dir(kind):
            if isinstance(inspect.getattr_static(kind, name), Sends):
                yield from _render_method(f"{path}.{name}", getattr(kind, name))


def _render_method(path: str, build: Any) -> Iterator[str]:
    signature = inspect.signature(build)
    plain = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    shown = signature.replace(parameters=plain, return_annotation=signature.empty)
    yield f"### `{path}{shown}`\n\n::: {build.__module__}.{build.__name__}"
    yield "    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"


def _render_commands() -> Iterator[str]:
    yield "# Command line\n\n`fovea COMMAND --help` prints the same text.\n"
    root = get_command(app)
    context = root.context_class(root, info_name="fovea")
    yield from _render_command(root, "fovea", context, {point.name: load_plugin(point) for point in entries(GROUP)})


def _render_command(command: Any, path: str, context: Any, loaded: dict[str, Any]) -> Iterator[str]:
    """A group's commands, or one command with its options; `loaded` has commands that the group itself names only."""
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            child = loaded.get(name) or command.get_command(context, name)
            if not child.hidden:
                inner = child.context_class(child, parent=context, info_name=name)
                yield from _render_command(child, f"{path} {name}", inner, {})
        return
    yield f"## `{path}`\n\n{inspect.cleandoc(command.help or '').replace(chr(8), '')}\n"
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [[_escape(cell) for cell in record] for record in records if record is not None]
    if rows:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| {option} | {meaning} |" for option, meaning in rows)
        yield ""


def _escape(cell: str) -> str:
    plain = re.sub(r"\[/?[a-z ]*\](?=\S|$)", "", re.sub(r"\s+", " ", cell))  # Rich's marks of style
    return plain.replace("|", "/").replace("[", r"\[").replace("<", "&lt;")


def _render_errors() -> Iterator[str]:
    yield "# Errors\n\nErrors are problem documents (RFC 9457); `detail` says what is wrong, `hint` what to try.\n"
    yield "| status | class | meaning |\n|--:|---|---|"
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.FoveaError)]
    for one in sorted(classes, key=lambda each: (each.status, each.__name__)):
        yield f"| {one.status} | `{one.__name__}` | {(inspect.getdoc(one) or '').splitlines()[0]} |"
