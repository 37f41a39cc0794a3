"""Sign-in of the console at an identity provider: authorisation code with PKCE (RFC 7636), as a public client.

The browser keeps the verifier and goes to the provider; the gateway exchanges the code, so that no page connects to
another host. The rights of a token are checked with each request that carries it (`policy.oidc`).
"""

from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from fovea.errors import InvalidOption, NotReady, RateLimited, Unauthenticated
from services.gateway.policy.oidc import fetch_discovery, open_session
from shared.settings import Settings

PATH = "/console/sign-in"
"""Where the provider sends the reader back to; to be registered there as a redirect URI, with the gateway's address."""

_MAX_TEXT = 4096
_MOST_AT_ONCE = 16
"""Exchanges that go on at once: anybody may ask for one."""


class SignIn:
    """Sends readers to the issuer of `settings`, and exchanges the codes that they come back with."""

    def __init__(self, settings: Settings) -> None:
        self._issuer, self._client = str(settings.oidc_issuer), str(settings.oidc_client_id)
        self._scope = settings.oidc_login_scope
        self._about: dict[str, Any] | None = None
        self._going_on = 0

    def routes(self) -> list[Route]:
        """Build the routes of both steps; the page that the reader comes back to is the console's."""
        return [Route(f"{PATH}/start", self.start), Route(f"{PATH}/token", self.exchange, methods=["POST"])]

    async def start(self, request: Request) -> Response:
        """Go to the provider's page; the challenge and the state come from the browser."""
        about = await self._discover()
        query = {
            "response_type": "code", "client_id": self._client, "redirect_uri": _redirect_uri(request),
            "scope": self._scope, "state": request.query_params.get("state", "")[:_MAX_TEXT],
            "code_challenge": request.query_params.get("challenge", "")[:_MAX_TEXT], "code_challenge_method": "S256",
        }  # fmt: skip
        page = str(about["authorization_endpoint"])
        return RedirectResponse(f"{page}{'&' if urlsplit(page).query else '?'}{urlencode(query)}", 302)

    async def exchange(self, request: Request) -> Response:
        """Exchange a code for a token.

        Raises Unauthenticated: the provider refuses the code; RateLimited: too many exchanges go on.
        """
        form = await request.form(max_files=0, max_fields=4)
        code, verifier = (str(form.get(name, ""))[:_MAX_TEXT] for name in ("code", "verifier"))
        fields = {
            "grant_type": "authorization_code", "client_id": self._client, "redirect_uri": _redirect_uri(request),
            "code": code, "code_verifier": verifier,
        }  # fmt: skip
        if self._going_on >= _MOST_AT_ONCE:
            raise RateLimited("Too many readers sign in at this moment.", hint="Try again soon.", retry_after=1)
        self._going_on += 1
        try:
            status, answer = await self._post((await self._discover())["token_endpoint"], fields)
        finally:
            self._going_on -= 1
        # A provider's access token may be for its own use only; then the identity token is the one to verify.
        tokens = [text for name in ("access_token", "id_token") if str(text := answer.get(name, "")).count(".") == 2]
        if status != 200 or not tokens:
            reason = str(answer.get("error_description") or answer.get("error") or f"status {status}")[:200]
            raise Unauthenticated(f"The identity provider gave no token: {reason}.", hint="Sign in again.")
        return JSONResponse({"token": tokens[0]}, headers={"cache-control": "no-store"})

    async def _discover(self) -> dict[str, Any]:
        if self._about is not None:
            return self._about
        try:
            async with open_session(self._issuer) as session:
                about = await fetch_discovery(session, self._issuer)
            if not {"authorization_endpoint", "token_endpoint"} <= about.keys():
                raise ValueError("no endpoints")  # noqa: TRY301  # as any other document that can't be used
        except (aiohttp.ClientError, TimeoutError, ValueError, TypeError) as error:
            raise _unreachable() from error
        self._about = about
        return about

    async def _post(self, url: str, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        try:
            async with open_session(self._issuer) as http, http.post(url, data=fields, allow_redirects=False) as sent:
                answer = await sent.json(content_type=None)
                return sent.status, answer if isinstance(answer, dict) else {}
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _unreachable() from error


def _unreachable() -> NotReady:
    return NotReady("The identity provider can't be reached.", hint="Use an API key, or try again soon.", retry_after=5)


def _redirect_uri(request: Request) -> str:
    """The address that the provider sends the reader back to: this host, by the scheme that the browser uses."""
    scheme = request.query_params.get("scheme", "")
    if scheme not in {"http", "https"}:
        raise InvalidOption("`scheme` must be http or https.", field="scheme")
    return f"{scheme}://{request.headers.get('host', '')}{PATH}"
