"""`fovea methods [NAME]`: attention methods that a chat may ask for, and one's knobs, as the service describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.cli.commands.probe import parse_pair
from fovea.cli.common_options import AsJson, Connection, Key, Url
from fovea.cli.output import Screen
from fovea.cli.schema_options import describe_options, parse_options
from fovea.client import Client
from fovea.method_schema import MethodCard
from fovea.method_schema import methods as listed
from fovea.transport import LOCAL
from shared.api.text import LongctxOptions
from shared.errors import NotFound

__all__ = ["build_longctx", "methods"]


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this method's knobs.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List attention methods, or show one's knobs."""
    screen = Screen(as_json=as_json)
    with Connection(url, key).client() as client:
        found = client.send(listed()) if name is None else [_named(client, name)]
    if as_json:
        for one in found:
            screen.line(one)
    elif name is None:
        rows = [(f"[bold]{escape(one.name)}[/]", ", ".join(one.phases), escape(one.summary)) for one in found]
        screen.table(("method", "acts in", "what it does"), rows)
    else:
        screen.text(found[0].help)
        screen.out.print()
        screen.facts({f"-K {knob}=": about for knob, about in describe_options(found[0].knobs)})


def build_longctx(client: Client, name: str | None, knobs: Sequence[str]) -> dict[str, Any] | None:
    """`longctx` of a request from `--method` and `--knob NAME=VALUE`; None where neither is given.

    Raises:
        InvalidOption: A knob that the method does not have; the hint names those there are.
        NotFound: There is no such method.
    """
    if name is None and not knobs:
        return None
    card, own = _named(client, name or "dense"), LongctxOptions.model_json_schema()
    schema = {
        "properties": {**own["properties"], **card.knobs.get("properties", {})},
        "$defs": {**own.get("$defs", {}), **card.knobs.get("$defs", {})},
    }
    return {"method": card.name, **parse_options(dict(map(parse_pair, knobs)), schema)}


def _named(client: Client, name: str) -> MethodCard:
    found = {one.name: one for one in client.send(listed())}
    if name not in found:
        detail = f"There is no attention method {name!r}."
        raise NotFound(detail, hint=f"There are {', '.join(found)}.")
    return found[name]
