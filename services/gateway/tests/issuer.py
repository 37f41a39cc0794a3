"""An identity provider: discovery, JWKS, tokens with the claims that are asked for, rotation of its key.

It signs everybody in without a question (authorisation code with PKCE).
"""

import base64
import hashlib
import json
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

    def token(self, **claims: Any) -> str:
        """A token of this issuer for Alice and ten minutes, unless the claims say otherwise."""
        headers = {"kid": claims.pop("kid", self.key_id)}
        known = {"iss": self.url, "aud": "fovea", "sub": "someone", "exp": int(time.time()) + 600}
        known |= {"tenant": "alice", "scope": "infer fovea:jobs"}
        return jwt.encode({**known, **claims}, self.key, "ES256", headers)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        issuer: Any = self.server
        parts = urlsplit(self.path)
        if parts.path == "/authorization":
            issuer.asked = dict(parse_qsl(parts.query))
            back = {"code": "code-1", "state": issuer.asked["state"]}
            self.send_response(302)
            self.send_header("location", f"{issuer.asked['redirect_uri']}?{urlencode(back)}")
            self.send_header("content-length", "0")
            return self.end_headers()
        if parts.path == "/jwks":
            issuer.fetches += 1
            time.sleep(issuer.pause_s)
            public = json.loads(ECAlgorithm.to_jwk(issuer.key.public_key()))
            return self.send_json({"keys": [{**public, "kid": issuer.key_id, "use": "sig", "alg": "ES256"}]})
        pages = {f"{name}_endpoint": f"{issuer.url}/{name}" for name in ("authorization", "token")}
        return self.send_json({"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks", **pages})

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
        issuer.asked = {}
        return self.send_json({"access_token": issuer.token(), "token_type": "Bearer"})

    def send_json(self, answer: Any, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
