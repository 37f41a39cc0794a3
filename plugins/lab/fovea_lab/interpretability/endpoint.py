"""Client of llm-longctx over the OpenAI protocol: one greedy chat completion under an attention method."""

from typing import Any

import httpx2

from fovea.client import Client
from fovea.errors import BadInput, NotReady, in_field
from fovea.retry import RetryPolicy

CHAT_TIMEOUT_S = 600.0


class LongctxEndpoint:
    """A chat endpoint; the connection is opened with the first request."""

    def __init__(self, base_url: str, key: str | None = None, *, transport: httpx2.BaseTransport | None = None) -> None:
        """Send requests to `base_url`, with an API key where it needs one."""
        once = RetryPolicy(tries=1)
        self._client = Client(base_url, key=key, timeout=CHAT_TIMEOUT_S, retry_policy=once, transport=transport)

    def chat(self, user: str, *, max_tokens: int, longctx: dict[str, Any], model: str | None = None) -> str:
        """Return the answer to one message.

        Raises:
            NotReady: The endpoint does not answer.
            FoveaError: The endpoint refuses; its own message is passed on.
        """
        messages = [{"role": "user", "content": user}]
        options = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "longctx": longctx, "model": model}
        with in_field("longctx"):
            try:
                return str(self._client.run("chat", options)["choices"][0]["message"]["content"] or "")
            except NotReady as error:
                error.hint = "Start it with `fovea up`, or set FOVEA_JUDGE_BASE_URL."
                raise
            except (KeyError, IndexError, TypeError) as error:
                raise BadInput("The endpoint's answer is not a chat completion.") from error
