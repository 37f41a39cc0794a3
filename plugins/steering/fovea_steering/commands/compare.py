"""Answer a question with several attention methods, and measure how far each is from the first.

Knows the SDK and the terminal; the methods run and are compared behind the gateway.
"""

from typing import Annotated

import typer
from rich.markup import escape

from fovea.api.longctx import ComparedAnswer
from fovea.cli.commands.chat import ReplyOptions, read_prompt
from fovea.cli.commands.methods import build_longctx
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.option_groups import CommandApp

app = CommandApp(add_completion=False)


@app.command("compare", no_args_is_help=True)
def compare(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT", help="The question; - is standard input.")],
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            help="A method with settings: 'snapkv kv_ratio=0.25'. The first is the reference; of one alone, dense is.",
        ),
    ],
    *,
    reply: ReplyOptions,
    model: Model = None,
    gateway: GatewayOptions,
) -> None:
    """Answer a question with several attention methods, and measure how far each is from the first.

    [bold]fovea compare "Who was Ada Lovelace?" --method "snapkv kv_ratio=0.25" --method "tova kv_ratio=0.25"[/]

    KL is that of next-token distributions over the first answer, in nats per token; `fovea methods` lists methods.
    """
    screen, question, options = gateway.screen, read_prompt(prompt), reply.build()
    with gateway.open() as client:
        asked = [words.split() or ["dense"] for words in (method if len(method) > 1 else ["dense", *method])]
        options["compare"] = [build_longctx(client, name, knobs) or name for name, *knobs in asked]
        answer = client.chat(question, model=model, **options)
    if screen.wrote(answer):
        return
    texts = [choice.message.content or "" for choice in answer.choices]
    compared = answer.comparison or []
    rows = [(*_row(one), escape(texts[one.index])) for one in compared]
    columns = ("method", "KL", "agreement", "KV bytes", "of dense", "note")
    if screen.is_tsv:
        screen.table((*columns, "answer"), rows)
        return
    for one, text in zip(compared, texts, strict=True):
        screen.text(f"{one.longctx.method}:\n{text}\n")
    screen.table(columns, [row[:-1] for row in rows])


def _row(one: ComparedAnswer) -> tuple[str, ...]:
    served = one.longctx
    return (
        escape(served.method),
        "" if one.mean_kl is None else f"{one.mean_kl:.4f}",
        "" if one.agreement is None else f"{one.agreement:.3f}",
        str(served.kv_bytes),
        f"{served.kv_ratio:.3f}",
        escape(served.fallback or served.budget_missed or ""),
    )
