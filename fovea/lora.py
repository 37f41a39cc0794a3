"""LoRA adapters of a gateway: added from a folder that peft has saved, listed and deleted.

A chat uses one by its name: `client.chat("…", model="my-adapter")`.
"""

import base64
import json
from pathlib import Path

from fovea.api.lora import LoraAdapterDeleted, LoraAdapterEntry, LoraAdapterList
from fovea.call import AsyncPart, Call, Part, Sends, parse_as, quote_id
from fovea.errors import NotFound

_PATH = "/v1/lora-adapters"


def add_adapter(folder: str | Path, name: str | None = None, model: str | None = None) -> Call[LoraAdapterEntry]:
    """Store an adapter.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`, as peft saves them.
        name: Its name in requests; default: the folder's.
        model: The model that it adapts; default: the default chat model.

    Raises NotFound: the folder is not one that peft has saved.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        weights = (folder / "adapter_model.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        detail = f"{folder} is no folder of an adapter: {error}."
        raise NotFound(detail, hint="Save the adapter with `save_pretrained` of peft.") from error
    body = {"name": name or folder.resolve().name, "config": config, "weights": base64.b64encode(weights).decode()}
    given = body | ({} if model is None else {"model": model})
    return Call("POST", _PATH, parse_as(LoraAdapterEntry), json=given)


def list_adapters() -> Call[list[LoraAdapterEntry]]:
    """List your adapters and those of the server, by name."""
    return Call("GET", _PATH, lambda answer: parse_as(LoraAdapterList)(answer).data)


def delete_adapter(name: str) -> Call[LoraAdapterDeleted]:
    """Delete one of your adapters."""
    return Call("DELETE", f"{_PATH}/{quote_id(name)}", parse_as(LoraAdapterDeleted))


class _Methods:
    add = Sends(add_adapter, reads_files=True)
    list = Sends(list_adapters)
    delete = Sends(delete_adapter)


class LoraAdapters(_Methods, Part):
    """LoRA adapters; available as `client.lora_adapters`."""


class AsyncLoraAdapters(_Methods, AsyncPart):
    """LoRA adapters; available as `client.lora_adapters` of an `AsyncClient`."""
