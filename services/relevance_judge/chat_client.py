"""Client of the OpenAI protocol, as small as judging needs. Safe to share between threads; stores no request."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from fovea.errors import Fault, FoveaError, InvalidOption, NotReady, TooLarge, by_status
from fovea.transport import build_client_options
from shared.registry import CallContext

Message = Mapping[str, str]

REQUEST_TIMEOUT_S = 120.0
TOP_LOGPROBS = 20
"""Most log-probabilities that servers list per token."""


class PromptTooLong(TooLarge):
    """The prompt does not fit the model's window."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A chat completion: text, model, tokens read and made, and log-probabilities of its first token."""

    text: str
    model: str
    tokens: int
    first_logprobs: Mapping[str, float]


class ChatClient:
    """One server of chat models."""

    def __init__(self, url: str, *, key: str | None = None, transport: httpx2.BaseTransport | None = None) -> None:
        self._client = httpx2.Client(**build_client_options(url, key), transport=transport)

    def chat(
        self,
        messages: Sequence[Message],
        run: CallContext,
        *,
        model: str | None = None,
        max_tokens: int = 16,
        temperature: float = 0.0,
        seed: int | None = None,
        logprobs: bool = False,
    ) -> ChatReply:
        """Complete a conversation.

        Raises TooLong if it does not fit the model's window, NotReady if nobody answers, else a FoveaError by the
        status.
        """
        body: dict[str, Any] = {"messages": list(messages), "max_tokens": max_tokens, "temperature": temperature}
        body |= {"seed": seed} if seed is not None else {}
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if logprobs else {}
        found = self._post("/v1/chat/completions", body, run, model)
        try:
            choice = found["choices"][0]
            top = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
            first = {str(item["token"]): float(item["logprob"]) for item in top}
            text = choice["message"]["content"] or ""
            return ChatReply(text, str(found["model"]), int((found.get("usage") or {}).get("total_tokens", 0)), first)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _protocol_error() from error

    def tokenize(self, run: CallContext, *, model: str | None = None, **text: Any) -> list[int]:
        """Token ids of `messages` under the model's template, or of a plain `prompt`."""
        found = self._post("/tokenize", text, run, model)
        if not isinstance(ids := found.get("tokens"), list):
            raise _protocol_error()
        return ids

    def score_tokens(
        self, ids: Sequence[int], run: CallContext, *, model: str | None = None, first: int = 0
    ) -> tuple[list[float | None], str]:
        """Log-probability of each token of a prompt, and the model's name; the first token has none.

        Tokens before `first` may have none either: our own endpoint then takes them from its prefix cache, and other
        servers ignore the field.
        """
        body: dict[str, Any] = {"prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0}
        body |= {"longctx": {"logprobs_from": first}} if first else {}
        found = self._post("/v1/completions", body, run, model)
        try:
            return list(found["choices"][0]["logprobs"]["token_logprobs"]), str(found["model"])
        except (KeyError, IndexError, TypeError) as error:
            detail = "The endpoint gives no log-probabilities of a prompt."
            hint = "Query likelihood needs echo with logprobs, which our own models serve."
            raise InvalidOption(detail, hint=hint, field="llm") from error

    def list_models(self, run: CallContext) -> list[str]:
        """The models there are, the default of an endpoint of ours first; `NotReady` if nobody answers."""
        found = self._send("GET", "/v1/models", None, run).get("data")
        if not isinstance(found, list):
            raise _protocol_error()
        return [str(one["id"]) for one in found if isinstance(one, dict) and "id" in one]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _post(self, path: str, body: Mapping[str, Any], run: CallContext, model: str | None) -> dict[str, Any]:
        return self._send("POST", path, {**body, **({"model": model} if model else {})}, run)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, run: CallContext) -> dict[str, Any]:
        run.check()
        timeout = REQUEST_TIMEOUT_S if run.deadline is None else max(run.deadline - time.monotonic(), 0.001)
        try:
            answer = self._client.request(method, path, json=body, timeout=timeout)
        except httpx2.TimeoutException as error:
            run.check()
            raise NotReady("The language model did not answer in time.", retry_after=5) from error
        except httpx2.HTTPError as error:
            hint = "Start it, or set FOVEA_JUDGE_BASE_URL."
            raise NotReady("No language model can be reached at the judge's endpoint.", hint=hint) from error
        try:
            found = answer.json()
        except ValueError as error:
            raise _protocol_error() from error
        if answer.is_success and isinstance(found, dict):
            return found
        raise _refusal_error(answer.status_code, found)


def _protocol_error() -> Fault:
    return Fault("The language model's endpoint answered in a form that is not the OpenAI protocol.")


def _refusal_error(status: int, found: Any) -> FoveaError:
    error = found.get("error", found) if isinstance(found, dict) else {}
    error = error if isinstance(error, dict) else {"message": str(error)}
    message = str(error.get("message") or error.get("detail") or status)[:300]
    detail = f"The language model's endpoint refused: {message}"
    if error.get("code") == "context_length_exceeded" or re.search("(context|model) (length|size)", message):  # vLLM's
        return PromptTooLong(detail)
    return NotReady(detail) if status in {401, 403} or status >= 500 else by_status(status)(detail)
