"""A client of a service whose models have loaded."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from starlette.testclient import TestClient

LONGEST_S = 240
"""Weights are read and graphs opened while other tests take the processors."""


@contextmanager
def ready_client(app: FastAPI, *, raise_server_exceptions: bool = True) -> Iterator[TestClient]:
    """Start a service in this process and wait until its models answer."""
    with TestClient(app, raise_server_exceptions=raise_server_exceptions) as client:
        end = time.monotonic() + LONGEST_S
        while (answer := client.get("/readyz")).status_code != 200:
            assert time.monotonic() < end, answer.text
            time.sleep(0.02)
        yield client
