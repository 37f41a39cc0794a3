"""The command `fovea`: its own commands talk to a gateway, plug-in commands act on this machine."""

import errno
import sys
from importlib import metadata
from io import TextIOWrapper
from itertools import pairwise
from typing import Annotated

import typer

from fovea.cli.commands import (
    adapters,
    chat,
    classify,
    detect,
    heads,
    jobs,
    judge,
    methods,
    models,
    probe,
    restore,
    run,
    segment,
)
from fovea.cli.commands.run import MODEL_OPTIONS
from fovea.cli.exit_codes import HELP, INTERRUPTED, choose_exit_code
from fovea.cli.option_groups import CommandApp
from fovea.cli.output import Screen
from fovea.cli.plugins import PluginGroup
from fovea.cli.source_handlers import SourcesCommand
from fovea.errors import FoveaError, InvalidOption, StorageFull

app = CommandApp(
    cls=PluginGroup, no_args_is_help=True, epilog=HELP, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False,
)  # fmt: skip
app.command("models")(models.models)
app.command("methods")(methods.methods)
app.command("segment", cls=SourcesCommand, no_args_is_help=True, context_settings=MODEL_OPTIONS)(segment.segment)
app.command("detect", no_args_is_help=True, context_settings=MODEL_OPTIONS)(detect.detect)
app.command("classify", no_args_is_help=True, context_settings=MODEL_OPTIONS)(classify.classify)
app.command("restore", no_args_is_help=True)(restore.restore)
app.command("chat")(chat.chat)
app.command("run", no_args_is_help=True, context_settings=MODEL_OPTIONS)(run.run)
app.command("probe")(probe.probe)
app.add_typer(heads.app, name="heads")
app.add_typer(judge.app, name="judge")
app.add_typer(jobs.app, name="jobs")
app.add_typer(adapters.app, name="adapters")


def print_version(wanted: bool) -> None:
    """Print the installed version and stop."""
    if wanted:
        typer.echo(f"fovea {metadata.version('fovea-serve')}")
        raise typer.Exit


@app.callback()
def fovea(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version.")
    ] = False,
) -> None:
    """Use the models of a Fovea gateway: segment pictures, chat, run any other task.

    Commands talk to the gateway at FOVEA_URL (--url), with the key in FOVEA_API_KEY (--key).
    """


def main() -> None:
    """Run the command line; an error is printed in one line, and its kind is the exit code."""
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may be any bytes, and an old encoding lacks signs
        is_utf8 = sys.stdout.encoding.lower() in {"utf-8", "utf8"}
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")
    try:
        app(prog_name="fovea")
    except (FoveaError, OSError) as failure:
        is_full = isinstance(failure, OSError) and failure.errno in {errno.ENOSPC, errno.EDQUOT}
        kind = StorageFull if is_full else InvalidOption
        error = kind(f"{failure}.") if isinstance(failure, OSError) else failure
        is_json = not {"--json", "--format=json"}.isdisjoint(sys.argv) or ("--format", "json") in pairwise(sys.argv)
        Screen(as_json=is_json and not is_full).error(error)  # what is full may be standard output
        sys.exit(choose_exit_code(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
