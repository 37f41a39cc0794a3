"""`fovea chat [PROMPT …]`: streams one answer, or holds a conversation when there is a terminal and no prompt."""

import contextlib
import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.markup import escape

from fovea.api.text import ChatMessage, Usage
from fovea.chat import ChatOptions
from fovea.cli.commands.methods import build_longctx
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.output import Screen
from fovea.cli.text_files import read_text
from fovea.client import Client
from fovea.errors import FoveaError, Malformed
from fovea.sessions_documents import open_session


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How an answer is drawn, and what it continues."""

    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", min=0, max=2, help="Sampling temperature; 0 is greedy.")
    ] = None
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", min=1, help="Longest answer, in tokens.")] = (
        None
    )
    seed: Annotated[int | None, typer.Option(help="Random seed, to repeat an answer.")] = None
    session_id: Annotated[
        str | None, typer.Option("--session", help="Continue this session (`fovea sessions open`).")
    ] = None
    document_id: Annotated[
        str | None, typer.Option("--document", help="Ask about this document (`fovea documents add`).")
    ] = None

    def build(self) -> ChatOptions:
        """Return the options of a chat request."""
        return cast("ChatOptions", asdict(self))


def chat(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The question; - is standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System prompt.")] = None,
    *,
    reply: ReplyOptions,
    method: Annotated[str | None, typer.Option(help="Attention method; `fovea methods` lists them.")] = None,
    knob: Annotated[
        list[str] | None,
        typer.Option("--knob", "-K", metavar="NAME=VALUE", help="A setting of the method, or a memory budget."),
    ] = None,
    model: Model = None,
    gateway: GatewayOptions,
) -> None:
    """Ask a language model a question, or hold a conversation with it.

    Without a prompt it starts a conversation; without a terminal the prompt is read from standard input.
    """
    options, screen = reply.build(), gateway.screen
    with gateway.open() as client:
        options["longctx"] = build_longctx(client, method, knob or ())
        conversation = _Conversation(client, screen, model or client.default_model("chat"), system, options)
        if not prompt and _at_terminal():
            conversation.run()
        else:
            conversation.ask(read_prompt(prompt or ["-"]))


def _at_terminal() -> bool:
    return sys.stdin.isatty()


def read_prompt(words: list[str]) -> str:
    """Join the words of a prompt; a dash is standard input. Malformed if there is no text."""
    text = " ".join(read_text(Path(word)).strip() if word == "-" else word for word in words).strip()
    if not text:
        raise Malformed("There is no prompt.", hint='Try: fovea chat "What is attention?"')
    return text


class _Conversation:
    """A conversation with a model, and where it is printed."""

    def __init__(self, client: Client, screen: Screen, model: str, system: str | None, options: ChatOptions) -> None:
        self._client, self._screen, self._model = client, screen, model
        self._options = options
        self._start = [ChatMessage(role="system", content=system)] if system else []
        self._messages = list(self._start)

    def ask(self, question: str) -> None:
        """Send a question and print the answer as it arrives."""
        messages = [*self._messages, ChatMessage(role="user", content=question)]
        if self._screen.as_json:
            self._screen.line(answer := self._client.chat(messages, model=self._model, **self._options))
            text = answer.text
        else:
            text = self._print_stream(messages)
        # A session has these in its memory: only new messages are sent.
        said = ChatMessage(role="assistant", content=text)
        self._messages = [] if self._options.get("session_id") else [*messages, said]

    def run(self) -> None:
        """Read questions until the end of input; `/clear` starts over."""
        # Importing it gives `input` a history and an editable line, where there is such a library.
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")
        self._screen.note(f"[bold]{escape(self._model)}[/] [dim]· /clear starts over, Ctrl-D ends[/]")
        for question in self._read_questions():
            try:
                if question != "/clear":
                    self.ask(question)
                    continue
                self._messages = list(self._start)
                if self._options.get("session_id"):  # it remembers what was said, so that a new one goes on
                    self._options["session_id"] = begun = self._client.send(open_session(self._model)).id
                    self._screen.note(f"[dim]session {begun}[/]")
            except FoveaError as error:
                self._screen.error(error)
            except KeyboardInterrupt:
                self._screen.note("[dim](stopped)[/]")

    def _read_questions(self) -> Iterator[str]:
        while True:
            try:
                question = input("› ").strip()
            except (EOFError, KeyboardInterrupt):
                self._screen.note("")
                return
            if question in {"/exit", "/quit"}:
                return
            if question:
                yield question

    def _print_stream(self, messages: list[ChatMessage]) -> str:
        parts: list[str] = []
        started, usage, longctx = time.monotonic(), None, None
        for piece in self._client.chat_stream(messages, model=self._model, **self._options):
            parts.append(piece.text)
            sys.stdout.write(piece.text)
            sys.stdout.flush()
            usage, longctx = piece.usage or usage, piece.longctx or longctx
        sys.stdout.write("\n")
        for cited in longctx.citations if longctx is not None else ():
            self._screen.note(f"[dim]block {cited.block}, {cited.weight:.0%}: {escape(cited.text)}[/]")
        if usage is not None and self._screen.err.is_terminal:
            self._screen.note(f"[dim]{summarise_usage(usage, time.monotonic() - started)}[/]")
        elif usage is not None:
            for told in list_deviations(usage):
                self._screen.note(escape(told))
        return "".join(parts)


def list_deviations(usage: Usage) -> list[str]:
    """Sentences on how the answer was served otherwise than asked: densely, or beyond its budget."""
    return [told for told in (longctx.fallback, longctx.budget_missed) if told] if (longctx := usage.longctx) else []


def summarise_usage(usage: Usage, seconds: float) -> str:
    """The cost of an answer and what is left, in one line."""
    rate = usage.completion_tokens / seconds if seconds > 0 else 0.0
    cached = usage.prompt_tokens_details.cached_tokens
    parts = [
        f"{usage.prompt_tokens:,} tokens in" + (f" ({cached:,} from the cache)" if cached else ""),
        f"{usage.completion_tokens:,} out",
        f"{rate:.1f} tokens per second",
    ]
    if (longctx := usage.longctx) is not None:
        share = f", {longctx.kv_ratio:.0%} of dense memory" if longctx.method != "dense" else ""
        parts.append(f"{longctx.method} attention{share}")
        parts += [told.rstrip(".") for told in list_deviations(usage)]
        if longctx.context_left is not None:
            parts.append(f"{longctx.context_left:,} tokens of context left")
    return " · ".join(parts)
