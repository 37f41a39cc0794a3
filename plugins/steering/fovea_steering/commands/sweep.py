"""Patch one activation of a prompt after another, and see what becomes of named next tokens.

Knows the SDK and the terminal; the patches run behind the gateway.
"""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.markup import escape

from fovea.api.sweeps import Sweep
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.option_groups import CommandApp
from fovea.cli.output import Screen

app = CommandApp(add_completion=False)


@app.command("sweep", no_args_is_help=True)
def sweep(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The patched prompt.")],
    token: Annotated[
        list[str], typer.Option("--token", "-t", help="A next token to look at; most begin with a space: ' Mary'.")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            "-s",
            help="Prompt of as many tokens whose activations are written; without it they become zero.",
        ),
    ] = None,
    site: Annotated[
        str, typer.Option(help="Activation: resid_pre, resid_post, attn_out, mlp_out, z, ….")
    ] = "resid_pre",
    by_head: Annotated[bool, typer.Option("--by-head", help="Columns are heads instead of positions.")] = False,
    layer: Annotated[list[int] | None, typer.Option("--layer", "-l", help="A row; default: all layers.")] = None,
    position: Annotated[
        list[int] | None, typer.Option("--position", "-p", help="A token that is patched, -1 the last; default: all.")
    ] = None,
    head: Annotated[list[int] | None, typer.Option("--head", help="A head that is patched; default: all.")] = None,
    model: Model = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Patch one activation of a prompt after another, and see what becomes of named next tokens.

    [bold]fovea sweep "When Mary and John went to the store, Mary gave a drink to" -t " Mary" -t " John" --source
    "When Mary and John went to the store, John gave a drink to"[/]

    A terminal shows one number per patch: of two tokens the recovered share of the source's logit difference (or
    the difference itself without a source), of one its probability. Pipes get a row per patch with all numbers.
    """
    screen = gateway.screen
    with gateway.open() as client:
        found = client.sweep(
            prompt,
            token,
            source=source,
            site=site,
            layers=layer or None,
            positions=position or None,
            by="head" if by_head else "position",
            heads=head or None,
            model=model,
        )
    if screen.wrote(found):
        return
    if screen.is_tsv:
        screen.table(_name_columns(found), _list_patches(found))
    else:
        _print_grid(screen, found)


def _columns(found: Sweep) -> list[tuple[int, str]]:
    """Number and text of each column."""
    if found.by == "head":
        return [(head, "") for head in found.heads or ()]
    return [(at, found.prompt_tokens[at]) for at in found.positions]


def _name_columns(found: Sweep) -> list[str]:
    named = ["layer", "head"] if found.by == "head" else ["layer", "position", "text"]
    for one in found.tokens:
        named += [f"logit {one.token!r}", f"probability {one.token!r}"]
    return named + [name for name in ("logit_difference", "recovered") if getattr(found, name) is not None]


def _list_patches(found: Sweep) -> Iterator[list[str]]:
    """All numbers of each patch, to full precision."""
    for i, layer in enumerate(found.layers):
        for j, (number, text) in enumerate(_columns(found)):
            row = [str(layer), str(number), *([] if found.by == "head" else [escape(text)])]
            for logit, probability in zip(found.logits[i][j], found.probabilities[i][j], strict=True):
                row += [repr(logit), repr(probability)]
            yield row + [repr(grid[i][j]) for grid in (found.logit_difference, found.recovered) if grid is not None]


def _print_grid(screen: Screen, found: Sweep) -> None:
    if found.recovered is not None:
        shown, grid = "recovered share of the logit difference", found.recovered
    elif found.logit_difference is not None:
        shown, grid = "logit difference", found.logit_difference
    else:
        shown, grid = "probability", [[cell[0] for cell in row] for row in found.probabilities]
    screen.text(f"{found.site} of {found.model}: {shown}")
    for name, run in (("prompt", found.prompt), ("source", found.source)):
        if run is not None:
            chances = zip(found.tokens, run.probabilities, strict=True)
            screen.text(f"{name}: {', '.join(f'{one.token!r} {chance:.3f}' for one, chance in chances)}")
    heads = [f"{number}{escape(repr(text)) if text else ''}" for number, text in _columns(found)]
    rows = [(str(layer), *(f"{cell:.2f}" for cell in row)) for layer, row in zip(found.layers, grid, strict=True)]
    screen.table(("layer", *heads), rows)
