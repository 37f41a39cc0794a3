"""Make, list and try steering vectors: directions that a chat adds inside the model.

Knows the SDK and the terminal; vectors are computed and stored behind the gateway.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fovea import steering
from fovea.api.steering import SteeringVector
from fovea.chat import ChatOptions
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.option_groups import CommandApp
from fovea.cli.output import Screen, Section
from fovea.cli.text_files import read_text
from fovea.errors import Malformed, in_field

app = CommandApp(no_args_is_help=True, help=(__doc__ or "").partition("\n")[0])

Name = Annotated[str, typer.Argument(metavar="NAME", help="`name@version`, or `name` for its newest version.")]
Strength = Annotated[
    float | None,
    typer.Option(
        "--strength",
        "-s",
        help="Length relative to an activation's (0.2 is a fifth); default: the vector's own. Minus reverses it.",
    ),
]


@app.command(no_args_is_help=True)
def make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in requests; each call makes a new version.")],
    positive: Annotated[
        list[str], typer.Option("--positive", "-p", help="A text with the wanted property, or @FILE with one per line.")
    ],
    negative: Annotated[
        list[str],
        typer.Option("--negative", "-n", help="A text with the opposite property, or @FILE with one per line."),
    ],
    layer: Annotated[list[int] | None, typer.Option("--layer", "-l", help="Layer; default: the middle third.")] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Average over all tokens of a prompt instead of the last one.")
    ] = False,
    model: Model = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Make a vector: the mean difference of what the model computes for two kinds of text.

    [bold]fovea steer make cheerful -p @cheerful.txt -n @gloomy.txt[/]
    """
    sides = _read_texts(positive, "--positive"), _read_texts(negative, "--negative")
    tokens = "mean" if mean else "last"
    made = gateway.send(steering.create_vector(name, *sides, layers=layer or None, model=model, tokens=tokens))
    _print_vector(gateway.screen, made)


@app.command("list")
def vectors(*, gateway: GatewayOptions) -> None:
    """List all vectors, newest first."""
    screen, found = gateway.screen, gateway.send(steering.list_vectors())
    if screen.wrote(*found):
        return
    rows = [
        (
            f"[bold]{escape(one.id)}[/]",
            escape(one.model),
            ", ".join(str(layer.layer) for layer in one.layers),
            f"{one.positive} and {one.negative}",
        )
        for one in found
    ]
    screen.table(("vector", "model", "layers", "prompts"), rows, head=False)


@app.command(no_args_is_help=True)
def show(name: Name, *, gateway: GatewayOptions) -> None:
    """Show how long a vector is in each layer, and how well it tells its own prompts apart."""
    _print_vector(gateway.screen, gateway.send(steering.get_vector(name)))


@app.command(no_args_is_help=True)
def delete(name: Name, *, gateway: GatewayOptions) -> None:
    """Delete a version of a vector, or all versions of a name."""
    screen, gone = gateway.screen, gateway.send(steering.delete_vector(name))
    if not screen.wrote(gone):
        screen.text(f"deleted: {gone.id}, versions {', '.join(map(str, gone.versions))}")


@app.command(no_args_is_help=True)
def compare(
    name: Name,
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT", help="The question.")],
    strength: Strength = None,
    layer: Annotated[int | None, typer.Option("--layer", "-l", help="One layer; default: the vector's own.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = 64,
    model: Model = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Answer a question without and with a vector, greedily.

    [bold]fovea steer compare cheerful "How was your day?" --strength 0.2[/]
    """
    screen, question = gateway.screen, " ".join(prompt)
    change: dict[str, object] = {"vector": name}
    if strength is not None:
        change["strength"] = strength
    if layer is not None:
        change["site"] = f"resid_post.{layer}"
    with gateway.open() as client:
        plain = ChatOptions(temperature=0.0, max_tokens=max_tokens)
        steered = ChatOptions(temperature=0.0, max_tokens=max_tokens, interventions=[change])
        answers = [client.chat(question, model=model, **options) for options in (plain, steered)]
    if screen.wrote(*answers):
        return
    how = "" if strength is None else f", strength {strength:g}"
    for label, answer in zip(("without", f"with {name}{how}"), answers, strict=True):
        screen.text(f"{label}:\n{answer.text}\n")


def _read_texts(given: list[str], option: str) -> list[str]:
    """Texts as they are given, or the lines of files."""
    texts: list[str] = []
    for one in given:
        if not one.startswith("@"):
            texts.append(one)
            continue
        with in_field(option):
            texts += [line for line in read_text(Path(one[1:])).splitlines() if line.strip()]
    if not texts:
        raise Malformed("There are no texts.", hint='Try: -p "a cheerful text" -n "a gloomy text".', field=option)
    return texts


def _print_vector(screen: Screen, vector: SteeringVector) -> None:
    if screen.wrote(vector):
        return
    screen.title(f"{escape(vector.id)} of {escape(vector.model)}, from {vector.positive} and {vector.negative} prompts")
    rows = [
        (str(one.layer), f"{one.norm:.2f}", f"{one.activation_norm:.1f}", f"{one.separation:.2f}")
        for one in vector.layers
    ]
    sections: list[Section] = [("layers", ("layer", "length", "activations' length", "separation"), rows)]
    if vector.strength is not None:
        screen.title(f"by default in layer {vector.layer}, strength {vector.strength:g}")
        effects = [(f"{one.strength:g}", f"{one.perplexity:.1f}") for one in vector.side_effects]
        sections.append(("perplexity of plain text there", ("strength", "perplexity"), effects))
    screen.sections({}, sections)
