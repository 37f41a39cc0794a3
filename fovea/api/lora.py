"""LoRA adapters on the wire: what is uploaded, what is known of a stored one, and vLLM's forms of loading."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from fovea.api.bounded_lists import ItemList

LORA_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Pattern of names."""

LoraName = Annotated[str, Field(pattern=LORA_NAME, description="Its name, which requests send as `model`.")]


class LoraAdapterRequest(BaseModel, extra="forbid"):
    """An adapter to store: the two files that `save_pretrained` of peft writes."""

    name: LoraName
    model: str | None = Field(None, description="The model that it adapts; left out, the default chat model.")
    config: dict[str, Any] = Field(description="Content of `adapter_config.json`.")
    weights: str = Field(description="Content of `adapter_model.safetensors` in base64.")


class LoraAdapterEntry(BaseModel):
    """A stored adapter."""

    id: str = Field(description="Its name, which requests send as `model`.")
    object: Literal["lora_adapter"] = "lora_adapter"
    parent: str = Field(description="The model that it adapts.")
    created: datetime
    rank: int = Field(description="The largest rank of its modules.")
    modules: int = Field(description="Linear layers that it changes.")
    nbytes: int = Field(description="Bytes of its file.")
    sha256: str = Field(description="Digest of its configuration and file.")
    is_shared: bool = Field(False, description="Whether it comes from this server's folder, for all callers.")


class LoraAdapterList(ItemList[LoraAdapterEntry]):
    """The caller's adapters and the shared ones, by name."""


class LoraAdapterDeleted(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["lora_adapter"] = "lora_adapter"
    deleted: bool = True


class LoadLoraAdapter(BaseModel, extra="forbid"):
    """vLLM's request to load an adapter from a folder of the server."""

    lora_name: LoraName
    lora_path: str = Field(max_length=4096, description="Its folder, below the one that FOVEA_LLM_ADAPTERS names.")


class UnloadLoraAdapter(BaseModel, extra="forbid"):
    """vLLM's request to unload an adapter."""

    lora_name: LoraName
    lora_int_id: int | None = Field(None, description="Taken and ignored: adapters have names only.")
