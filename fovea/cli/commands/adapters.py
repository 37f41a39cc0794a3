"""`fovea adapters`: LoRA adapters that requests use by name as their model. Knows the SDK and the terminal."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fovea import lora
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.option_groups import CommandApp

app = CommandApp(no_args_is_help=True, help="Add, list and delete LoRA adapters, which requests name as their model.")


@app.command(no_args_is_help=True)
def add(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="With adapter_config.json and adapter_model.safetensors.")
    ],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name in requests; default: the folder's.")] = None,
    model: Model = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Add an adapter that peft has saved, for example [bold]fovea adapters add runs/house-style[/]."""
    screen, made = gateway.screen, gateway.send(lora.add_adapter(folder, name, model))
    if not screen.wrote(made):
        screen.text(f"{made.id}: rank {made.rank}, {made.modules} layers of {made.parent}")
        screen.text(f"try it: fovea chat --model {made.id} Hello")


@app.command("list")
def list_adapters(*, gateway: GatewayOptions) -> None:
    """List your adapters and those of the server."""
    screen, found = gateway.screen, gateway.send(lora.list_adapters())
    if screen.wrote(*found):
        return
    rows = [
        (f"[bold]{escape(one.id)}[/]", escape(one.parent), str(one.rank), "the server" if one.is_shared else "you")
        for one in found
    ]
    screen.table(("adapter", "model", "rank", "from"), rows, head=False)


@app.command(no_args_is_help=True)
def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of one of your adapters.")],
    *,
    gateway: GatewayOptions,
) -> None:
    """Delete one of your adapters; answers that have begun go on with it."""
    screen, gone = gateway.screen, gateway.send(lora.delete_adapter(name))
    if not screen.wrote(gone):
        screen.text(f"deleted: {gone.id}")
