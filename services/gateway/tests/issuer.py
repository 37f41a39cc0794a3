"""An identity provider as a process: discovery, JWKS, tokens with the claims that are asked for, rotation of its key.

`python -m services.gateway.tests.issuer` prints its URL, then serves until it is killed.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

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
            answer: Any = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks"}
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
        body = json.dumps(answer).encode()
        self.send_response(200)
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
