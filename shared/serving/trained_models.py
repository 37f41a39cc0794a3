"""Models that are trained or imported while a service runs: they are loaded and served without a restart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fovea.errors import NotReady
from shared.registry import Servable
from shared.registry.imported_weights import fetch_weights
from shared.registry.trained import trained_servables
from shared.serving.host import Host
from shared.storage.object_store import ObjectStore

FOLDER_POLL_S = 2.0
"""Seconds between two looks into a folder."""

STORE_POLL_S = 30.0
"""Seconds between two looks into an object store."""


async def load_new_models(host: Host, known: Mapping[str, type[Servable[Any, Any]]], objects: ObjectStore) -> None:
    """Load each model whose manifest appears or changes, for ever; the models of before are served until then.

    `known` are the models of the service that may serve other weights; weights are published to `objects`.
    """
    folder, pause = host.settings.weights_dir, STORE_POLL_S
    if objects.under("weights").folder is not None:
        pause = FOLDER_POLL_S
    before = _list_manifests(folder)
    await host.wait_until_loaded()
    while True:
        await asyncio.sleep(pause)
        with contextlib.suppress(NotReady):  # the next look finds it
            await asyncio.to_thread(fetch_weights, objects, folder)
        now = _list_manifests(folder)
        if now != before:
            found = await asyncio.to_thread(trained_servables, known, folder)
            for name in sorted(found.keys() & {name for name, age in now.items() if before.get(name) != age}):
                await host.adopt(name, found[name])
            before = now


def _list_manifests(folder: Path) -> dict[str, int]:
    """Name of each manifest → when it was written, ns."""
    found = {}
    for file in folder.glob("*.json"):
        with contextlib.suppress(OSError):
            found[file.stem] = file.stat().st_mtime_ns
    return found
