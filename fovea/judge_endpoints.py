"""Endpoints of the relevance judge: builds calls and sends nothing."""

from collections.abc import Mapping
from typing import Any

from fovea.call import Call, read_bytes, read_json


def compute(what: str, body: Mapping[str, Any]) -> Call[Any]:
    """Compute something from the body; options that are None are left out."""
    options = {name: value for name, value in body.items() if value is not None}
    return Call("POST", f"/v1/judge/{what}", read_json, json=options)


def fetch(what: str, **params: str | int | None) -> Call[Any]:
    """Fetch something that is stored."""
    return Call("GET", f"/v1/judge/{what}", read_json, params=params)


def labels(batch: str, form: str) -> Call[bytes]:
    """Fetch the labels of a batch in one file format."""
    return Call("GET", f"/v1/judge/batches/{batch}", read_bytes, params={"form": form})
