"""`fovea methods [NAME]`: lists the attention methods that a chat may use, or shows the settings of one."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea import endpoints
from fovea.api.longctx import LongctxOptions
from fovea.cli.common_options import GatewayOptions
from fovea.cli.schema_options import describe_options, parse_options, parse_pair
from fovea.client import Client
from fovea.errors import NotFound
from fovea.results import MethodCard


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the settings of this method.")] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """List attention methods, or show the settings of one."""
    screen = gateway.screen
    with gateway.open() as client:
        found = client.send(endpoints.methods()) if name is None else [fetch_method(client, name)]
    if screen.wrote(*found):
        return
    if name is None:
        rows = [(f"[bold]{escape(one.name)}[/]", ", ".join(one.phases), escape(one.summary)) for one in found]
        screen.table(("method", "acts in", "what it does"), rows, head=False)
    else:
        screen.title(f"{escape(found[0].help)}\n")
        screen.facts({f"-K {knob}=": about for knob, about in describe_options(found[0].knobs)})


def build_longctx(client: Client, name: str | None, knobs: Sequence[str]) -> dict[str, Any] | None:
    """Build `longctx` of a request from `--method` and `--knob NAME=VALUE`; None where neither is given.

    Raises InvalidOption: the method has no such setting; NotFound: there is no such method. Hints list those there are.
    """
    pairs = [parse_pair(knob, "--knob") for knob in knobs]
    if name is None:  # a budget, or settings of a model with attention of its own, which only its service knows
        return parse_options(pairs, {}) or None
    card, own = fetch_method(client, name), LongctxOptions.model_json_schema()
    schema = {part: {**own.get(part, {}), **card.knobs.get(part, {})} for part in ("properties", "$defs")}
    return {"method": card.name, **parse_options(pairs, schema)}


def fetch_method(client: Client, name: str) -> MethodCard:
    """Fetch an attention method by its name. Raises NotFound: there is none; the hint lists those there are."""
    found = {one.name: one for one in client.send(endpoints.methods())}
    if name not in found:
        raise NotFound(f"There is no attention method {name!r}.", hint=f"Methods: {', '.join(found)}.")
    return found[name]
