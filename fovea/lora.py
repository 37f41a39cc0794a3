"""LoRA adapters of a gateway: added from a folder that peft has saved, listed and deleted.

A chat uses one by its name: `client.chat("…", model="my-adapter")`.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

from fovea.api.lora import LoraAdapterDeleted, LoraAdapterEntry, LoraAdapterList
from fovea.call import AsyncSender, Call, Sender, parse_as
from fovea.errors import NotFound

_PATH = "/v1/lora-adapters"


def add(folder: Path, name: str | None = None, model: str | None = None) -> Call[LoraAdapterEntry]:
    """Store the adapter of a folder; its name is the folder's unless told otherwise.

    Raises:
        NotFound: The folder is not one that peft has saved.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        weights = (folder / "adapter_model.safetensors").read_bytes()
    except FileNotFoundError as error:
        detail = f"{folder} has no {Path(error.filename).name}."
        raise NotFound(detail, hint="Save the adapter with `save_pretrained` of peft.") from error
    body = {"name": name or folder.resolve().name, "config": config, "weights": base64.b64encode(weights).decode()}
    given = body | ({} if model is None else {"model": model})
    return Call("POST", _PATH, parse_as(LoraAdapterEntry), json=given)


def fetch_all() -> Call[list[LoraAdapterEntry]]:
    """List all adapters, by name."""
    return Call("GET", _PATH, lambda answer: parse_as(LoraAdapterList)(answer).data)


def delete(name: str) -> Call[LoraAdapterDeleted]:
    """Delete an adapter."""
    return Call("DELETE", f"{_PATH}/{quote(name)}", parse_as(LoraAdapterDeleted))


class LoraAdapters:
    """LoRA adapters; available as `client.lora_adapters`."""

    def __init__(self, client: Sender) -> None:
        self._client = client

    def add(self, folder: str | Path, name: str | None = None, model: str | None = None) -> LoraAdapterEntry:
        """Store an adapter.

        Args:
            folder: With `adapter_config.json` and `adapter_model.safetensors`, as peft saves them.
            name: Its name in requests; default: the folder's.
            model: The model that it adapts; default: the default chat model.

        Raises:
            NotFound: The folder is not one that peft has saved.
        """
        return self._client.send(add(Path(folder), name, model))

    def list(self) -> list[LoraAdapterEntry]:
        """List your adapters and those of the server, by name."""
        return self._client.send(fetch_all())

    def delete(self, name: str) -> LoraAdapterDeleted:
        """Delete one of your adapters."""
        return self._client.send(delete(name))


class AsyncLoraAdapters:
    """LoRA adapters; available as `client.lora_adapters` of an `AsyncClient`."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def add(self, folder: str | Path, name: str | None = None, model: str | None = None) -> LoraAdapterEntry:
        """Store an adapter; see `LoraAdapters.add`."""
        return await self._client.send(add(Path(folder), name, model))

    async def list(self) -> list[LoraAdapterEntry]:
        """List your adapters and those of the server, by name."""
        return await self._client.send(fetch_all())

    async def delete(self, name: str) -> LoraAdapterDeleted:
        """Delete one of your adapters."""
        return await self._client.send(delete(name))
