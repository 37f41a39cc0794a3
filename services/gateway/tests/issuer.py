"""An identity provider as a process: discovery, JWKS, tokens with the claims that are asked for, rotation of its key.

It signs everybody in without a question (authorisation code with PKCE).
`python -m services.gateway.tests.issuer` prints its URL, then serves until it is killed.
"""

import base64
import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm


class Issuer(ThreadingHTTPServer):
    """Its keys, newest last; retired ones are not published any more."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fetches = 0
        self.pause_s = 0.0
        self.asked: dict[str, str] = {}
        self.rotate()

    def rotate(self) -> None:
        self.key, self.key_id = ec.generate_private_key(ec.SECP256R1()), f"key-{time.monotonic_ns()}"

    def token(self, claims: dict[str, Any]) -> str:
        """A token of this issuer for ten minutes, unless the claims say otherwise."""
        headers = {"kid": claims.pop("kid", self.key_id)}
        if "exp" in claims:
            claims["exp"] = int(claims["exp"])
        claims |= json.loads(claims.pop("raw", "{}"))
        known = {"iss": self.url, "aud": "fovea", "sub": "someone", "exp": int(time.time()) + 600}
        return jwt.encode({**known, **claims}, self.key, "ES256", headers)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        issuer: Any = self.server
        parts = urlsplit(self.path)
        if parts.path == "/.well-known/openid-configuration":
            pages = {f"{name}_endpoint": f"{issuer.url}/{name}" for name in ("authorization", "token")}
            answer: Any = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks", **pages}
        elif parts.path == "/authorization":
            issuer.asked = dict(parse_qsl(parts.query))
            back = {"code": "code-1", "state": issuer.asked["state"]}
            self.send_response(302)
            self.send_header("location", f"{issuer.asked['redirect_uri']}?{urlencode(back)}")
            self.send_header("content-length", "0")
            return self.end_headers()
        elif parts.path == "/jwks":
            issuer.fetches += 1
            time.sleep(issuer.pause_s)
            public = json.loads(ECAlgorithm.to_jwk(issuer.key.public_key()))
            answer = {"keys": [{**public, "kid": issuer.key_id, "use": "sig", "alg": "ES256"}]}
        elif parts.path == "/token":
            answer = {"token": issuer.token(dict(parse_qsl(parts.query)))}
        elif parts.path == "/pause":
            issuer.pause_s = float(parts.query)
            answer = {}
        elif parts.path == "/fetches":
            answer = {"fetches": issuer.fetches}
        else:
            issuer.rotate()
            answer = {}
        return self.send_json(answer)

    def do_POST(self) -> None:
        """Exchange a code, once, for the verifier of the challenge that it was asked for with."""
        issuer: Any = self.server
        form = dict(parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        same = ("client_id", "redirect_uri")
        if form.get("code") != "code-1" or issuer.asked.get("code_challenge") != challenge:
            return self.send_json({"error": "invalid_grant"}, 400)
        assert [form[name] for name in same] == [issuer.asked[name] for name in same]
        claims = {"tenant": "alice", "scope": "infer fovea:jobs"}
        issuer.asked = {}
        return self.send_json({"access_token": issuer.token(claims), "token_type": "Bearer"})

    def send_json(self, answer: Any, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    made = Issuer()
    sys.stdout.write(made.url + "\n")
    sys.stdout.flush()
    made.serve_forever()
