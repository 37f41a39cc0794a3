"""Examples of an API: one real request and its answer for each operation, in `api_examples.json` next to the code.

Each package has a file of its own, so that a plug-in brings the examples of its routes. A text that begins with `@`
stands for a file.
"""

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

FILE = "api_examples.json"


def read_examples(package: str) -> dict[str, dict[str, Any]]:
    """Read the examples of a package by operation, as `POST /v1/segment`; empty where it has none."""
    try:
        file = resources.files(package) / FILE
    except Exception:  # noqa: BLE001  # loading the plug-in reports it
        return {}
    found: dict[str, dict[str, Any]] = json.loads(file.read_text("utf8")) if file.is_file() else {}
    return found


def attach_examples(document: dict[str, Any], packages: Iterable[str]) -> dict[str, Any]:
    """Add the examples of these packages to the operations of an OpenAPI document, and return it."""
    for package in dict.fromkeys(packages):
        for label, example in read_examples(package).items():
            method, path = label.split(" ")
            operation = document["paths"].get(path, {}).get(method.lower())
            if operation is not None:
                _attach(operation, example)
    return document


def _attach(operation: dict[str, Any], example: Mapping[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in (values := example.get("parameters", {})):
            parameter["example"] = values[parameter["name"]]
    body = operation.get("requestBody", {}).get("content", {})
    if "request" in example and (media := body.get(example["type"])) is not None:
        media["example"] = example["request"]
    answer = operation.get("responses", {}).get(example["status"])
    if "answer" in example and answer is not None:
        answer.setdefault("content", {}).setdefault(example["answer_type"], {})["example"] = example["answer"]
