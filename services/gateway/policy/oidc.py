"""OIDC bearer tokens: callers who signed in at an identity provider, without a key of ours.

The provider's keys are fetched once (discovery, then JWKS) and again when a token names an unknown one, so that the
provider may rotate them; not more often than every few seconds, whatever tokens arrive. PyJWT checks the signature, the
issuer, the audience and the times. Knows nothing about API keys.
"""

import asyncio
import re
import time
from typing import Any, Final

import aiohttp
import jwt

from fovea.errors import NotReady, Unauthenticated
from services.gateway.policy.caller import LOCAL, SCOPES, TENANT_PATTERN, Caller
from shared.settings import Settings
from shared.telemetry import log

_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""Signatures that need the provider's private key; never `none`, and none that the public key can make."""

_BAD_TOKEN: Final = (
    jwt.PyJWTError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""Errors of PyJWT for odd tokens: times without end, headers without form, brackets without number."""

_REFETCH_S: Final = 5.0
_KEEP_S: Final = 3600.0
TIMEOUT_S: Final = 5.0
"""Of a request to the provider."""

_LEEWAY_S: Final = 30


class TokenVerifier:
    """Verifies tokens of one issuer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    def is_token(self, credential: str | None) -> bool:
        """Whether a credential is a token for us to verify, and not a key."""
        return bool(self._settings.oidc_issuer) and credential is not None and credential.count(".") == 2

    async def authenticate(self, token: str) -> Caller:
        """Find the caller of a token: its tenant and scopes are claims.

        Raises Unauthenticated: the token is not the issuer's, not for us, expired, or names no tenant; NotReady: the
        issuer's keys can't be fetched.
        """
        settings = self._settings
        try:
            key = await self._find_key(str(jwt.get_unverified_header(token).get("kid", "")))
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=_ALGORITHMS, audience=settings.oidc_audience, issuer=settings.oidc_issuer,
                leeway=_LEEWAY_S, options={"require": ["exp", "iss", "aud"]},
            )  # fmt: skip
        except _BAD_TOKEN as error:
            raise Unauthenticated(f"The bearer token is not valid: {error}.", hint="Sign in again.") from error
        return self._caller_of(claims)

    def _caller_of(self, claims: dict[str, Any]) -> Caller:
        tenant = claims.get(self._settings.oidc_tenant_claim)
        if not isinstance(tenant, str) or not re.fullmatch(TENANT_PATTERN, tenant) or tenant == LOCAL.tenant:
            detail = f"The bearer token has no claim {self._settings.oidc_tenant_claim!r} that names a tenant."
            raise Unauthenticated(detail, hint="Have the identity provider add it.")
        stated = claims.get(self._settings.oidc_scope_claim, [])
        named = stated.split() if isinstance(stated, str) else stated
        if not isinstance(named, list) or not all(isinstance(text, str) for text in named):
            detail = f"The claim {self._settings.oidc_scope_claim!r} of the bearer token is not a list of scopes."
            raise Unauthenticated(detail, hint="Have the identity provider write a text or a list of texts.")
        scopes = {name.removeprefix("fovea:") for name in named} & set(SCOPES)
        return Caller(tenant, frozenset(scopes), key=f"oidc:{str(claims.get('sub', ''))[:200]}")

    async def _find_key(self, key_id: str) -> jwt.PyJWK:
        age = time.monotonic() - self._fetched_at
        if key_id not in self._keys or age > _KEEP_S:
            if age > _REFETCH_S and self._fetching is None:
                self._fetching = asyncio.create_task(self._fetch())
            # A key that is known does not wait for a slow issuer, unless it has been old for as long again.
            if self._fetching is not None and (key_id not in self._keys or age > 2 * _KEEP_S):
                await asyncio.shield(self._fetching)
        if not self._keys:
            detail = "The identity provider can't be reached, so tokens can't be verified."
            raise NotReady(detail, hint="Use an API key, or try again soon.", retry_after=5)
        try:
            return self._keys[key_id]
        except KeyError:
            raise Unauthenticated("The bearer token is signed with an unknown key.", hint="Sign in again.") from None

    async def _fetch(self) -> None:
        issuer = str(self._settings.oidc_issuer)
        self._fetched_at = time.monotonic()
        try:
            async with open_session(issuer) as session:
                about = await fetch_discovery(session, issuer)
                found = await _get_json(session, about["jwks_uri"])
            self._keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(found).keys if key.key_id}
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
            log().warning("the issuer's keys can't be fetched", issuer=issuer, reason=str(error))
        finally:
            self._fetching = None


def open_session(issuer: str) -> aiohttp.ClientSession:
    """Open a session for requests to an issuer: one outside is asked through the environment's proxy."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S), trust_env=issuer.startswith("https:"))


async def fetch_discovery(session: aiohttp.ClientSession, issuer: str) -> dict[str, Any]:
    """Fetch the discovery document of an issuer.

    Raises ValueError: it names another issuer, or is not JSON; TypeError: it is not an object.
    """
    about = await _get_json(session, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if about.get("issuer") != issuer:
        raise ValueError("the discovery document names another issuer")
    return about


async def _get_json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url, allow_redirects=False) as response:
        response.raise_for_status()
        document = await response.json(content_type=None)
    if not isinstance(document, dict):
        raise TypeError("not a JSON object")
    return document
