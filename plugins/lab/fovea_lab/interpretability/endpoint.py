"""Client of llm-longctx over the OpenAI protocol: one greedy chat completion under an attention method.

Knows HTTP and the protocol's fields; knows no experiment.
"""

from __future__ import annotations

from typing import Any

import httpx2

from fovea.errors import BadInput, NotReady, by_status

CHAT_TIMEOUT_S = 600.0


class LongctxEndpoint:
    """A chat endpoint; the connection is opened with the first request."""

    def __init__(self, base_url: str, key: str | None = None, *, transport: httpx2.BaseTransport | None = None) -> None:
        """Send requests to `base_url`, with an API key where it needs one."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(base_url=base_url, headers=headers, timeout=CHAT_TIMEOUT_S, transport=transport)
        self._base = base_url

    def chat(self, user: str, *, max_tokens: int, longctx: dict[str, Any], model: str | None = None) -> str:
        """Return the answer to one message.

        Raises:
            NotReady: The endpoint does not answer.
            FoveaError: The endpoint refuses; its own message is passed on.
        """
        body = {
            "messages": [{"role": "user", "content": user}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "longctx": longctx,
            **({"model": model} if model else {}),
        }
        try:
            answer = self._client.post("/v1/chat/completions", json=body)
        except httpx2.HTTPError as error:
            detail = f"{self._base} does not answer: {error}."
            raise NotReady(detail, hint="Start it with `fovea up`, or set FOVEA_JUDGE_BASE_URL.") from error
        if answer.is_error:
            raise by_status(answer.status_code)(f"llm-longctx refuses: {_error_message(answer)}", field="longctx")
        try:
            return str(answer.json()["choices"][0]["message"]["content"] or "")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise BadInput("The endpoint's answer is not a chat completion.", field="longctx") from error


def _error_message(answer: httpx2.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return answer.text[:200]
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:500]
