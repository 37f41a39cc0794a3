"""Smoke test: one real request to each service through the gateway, with the answers written to `out/`."""

import json
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from fovea.error_responses import parse_error

_ROUTES = {"chat": "/v1/chat/completions", "complete": "/v1/completions"}
_PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """Result of one service's first request."""

    service: str
    model: str
    is_ok: bool
    seconds: float
    summary: str
    files: tuple[Path, ...] = ()


async def run_smoke_test(
    gateway: str, out: Path, key: str | None = None, services: Collection[str] | None = None
) -> AsyncIterator[SmokeResult]:
    """Ask one model of each service for its own example, and write the answers under `out/<service>/`.

    The API `key` is sent where the gateway demands one; `services` None asks all.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(base_url=gateway, timeout=_TIMEOUT_S, headers=headers, trust_env=False) as client:
        entries: list[dict[str, Any]] = []
        try:
            entries = (await client.get("/v1/models")).raise_for_status().json()["data"]
        except (httpx2.HTTPError, ValueError) as error:
            yield SmokeResult(", ".join(services or ()), "models", False, 0.0, _failure(error))
        first: dict[str, dict[str, Any]] = {}
        for entry in sorted(entries, key=lambda entry: not entry["ready"]):
            if services is None or entry["service"] in services:
                first.setdefault(entry["service"], entry)
        for entry in first.values():
            yield await _send(client, entry, out / entry["service"])


async def _send(client: httpx2.AsyncClient, entry: Mapping[str, Any], folder: Path) -> SmokeResult:
    name, started = entry["id"], time.perf_counter()
    try:
        example = (await client.get(f"/v1/models/{quote(name)}/example")).raise_for_status().json()
        route, started = _ROUTES.get(entry["task"], f"/v1/{entry['task']}"), time.perf_counter()
        answer = await client.post(route, json={"model": name, **example})
        seconds = time.perf_counter() - started
        answer.raise_for_status()
        files = [_write(folder / f"{name.replace('/', '-')}.json", json.dumps(answer.json(), indent=1).encode())]
        files += await _save_picture(client, name, route, example, folder)
    except (httpx2.HTTPError, ValueError, OSError) as error:
        return SmokeResult(entry["service"], name, False, time.perf_counter() - started, _failure(error))
    return SmokeResult(entry["service"], name, True, seconds, _summary(answer.json()), tuple(files))


async def _save_picture(client: httpx2.AsyncClient, name: str, route: str, example: Any, folder: Path) -> list[Path]:
    """The same request once more as a picture, where the model draws."""
    card = (await client.get(f"/v1/models/{quote(name)}")).raise_for_status().json()
    media = next((media for media in card.get("media_types", ()) if media in _PICTURES), None)
    if media is None:
        return []
    picture = await client.post(route, json={"model": name, **example}, headers={"accept": media})
    return [_write(folder / f"{name.replace('/', '-')}.{_PICTURES[media]}", picture.raise_for_status().content)]


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _failure(error: Exception) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return parse_error(error.response).detail
    return str(error) or type(error).__name__


def _summary(answer: Any) -> str:
    """A few words on an answer: the text of a chat, else its first plain values."""
    if isinstance(answer, dict) and answer.get("choices"):
        choice = answer["choices"][0]
        text = (choice.get("message") or {}).get("content") or choice.get("text") or ""
        return json.dumps(" ".join(text.split())[:100], ensure_ascii=False)
    told = []
    for key, value in answer.items() if isinstance(answer, dict) else ():
        if isinstance(value, list):
            told.append(f"{key} {len(value)}×")
        elif isinstance(value, float):
            told.append(f"{key} {value:.4g}")
        elif isinstance(value, int) or (isinstance(value, str) and len(value) <= 40):
            told.append(f"{key} {value}")
    return ", ".join(told[:6])
