"""Signing in to the console at an identity provider, in a real browser: code with PKCE, exchanged by the gateway."""

import re

import httpx2
import pytest

from services.gateway.tests.browsing import MARKS, check_page, watched
from services.gateway.tests.stage import running
from services.gateway.tests.test_gateway_oidc import issuer  # noqa: F401

pytestmark = MARKS


@pytest.fixture
def stage(tmp_path, issuer):  # noqa: F811
    with running(tmp_path, auth="keys", oidc_issuer=issuer, oidc_client_id="fovea-console") as made:
        yield made


@pytest.fixture
def locked(chromium, stage):
    complaints: list[str] = []
    with watched(chromium, stage.url, complaints) as page:
        yield page
    assert not [said for said in complaints if "401" not in said]  # the page that asks for a key is one


def test_a_reader_signs_in_and_sees_the_page_that_was_asked_for(locked, see):
    locked.goto("/console/models/disc")
    check_page(locked)
    locked.get_by_role("button", name="Sign in with your organisation").click()
    see(locked.get_by_role("heading", level=1)).to_have_text("disc")
    assert locked.url.endswith("/console/models/disc")
    stored = locked.evaluate("[sessionStorage.getItem('fovea-key'), localStorage.getItem('fovea-key')]")
    assert (stored[0].count("."), stored[1]) == (2, None)
    locked.get_by_role("button", name="Account").click()
    see(locked.locator("#account dl")).to_contain_text("alice")
    locked.get_by_role("button", name="Sign out").click()
    see(locked.get_by_role("button", name="Sign in with your organisation")).to_be_visible()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?error=access_denied&error_description=Nobody%20may", "The identity provider refused: Nobody may."),
        ("?code=code-1&state=forged", "This sign-in was not started in this tab"),
    ],
)
def test_a_sign_in_that_failed_or_was_not_asked_for_says_so(locked, see, query, words):
    locked.goto(f"/console/sign-in{query}")
    see(locked.locator("[data-part=message]")).to_contain_text(words)
    assert locked.url.endswith("/console/sign-in")
    assert locked.evaluate("sessionStorage.getItem('fovea-key')") is None


def test_codes_are_exchanged_only_as_the_provider_allows(stage, issuer, tmp_path):  # noqa: F811
    address = f"{stage.url}/console/sign-in"
    sent = httpx2.get(f"{address}/start", params={"state": "s", "challenge": "c", "scheme": "http"})
    assert sent.status_code == 302
    assert sent.headers["location"].startswith(f"{issuer}/authorization?response_type=code&client_id=fovea-console&")
    refused = httpx2.post(f"{address}/token?scheme=http", data={"code": "code-1", "verifier": "other"})
    assert (refused.status_code, "invalid_grant" in refused.text) == (401, True)
    assert httpx2.get(f"{address}/start?scheme=javascript").status_code == 422
    with running(tmp_path / "gone", auth="keys", oidc_issuer="http://127.0.0.1:9", oidc_client_id="x") as other:
        assert httpx2.get(f"{other.url}/console/sign-in/start?scheme=http").status_code == 503
    with running(tmp_path / "plain", auth="keys", oidc_issuer=issuer) as plain:
        assert httpx2.get(f"{plain.url}/console/sign-in").status_code == 404
        assert not re.search("Sign in", httpx2.get(plain.url).text)
