"""Routes of LoRA adapters: `/v1/lora-adapters`, and vLLM's forms of loading and unloading.

Knows HTTP and the host; adapters are checked and stored in `serving.lora`.
"""

import asyncio
import base64
import binascii
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import PlainTextResponse

from fovea.api.lora import (
    LoadLoraAdapter,
    LoraAdapterDeleted,
    LoraAdapterEntry,
    LoraAdapterList,
    LoraAdapterRequest,
    UnloadLoraAdapter,
)
from fovea.api.replica import EFFECTFUL
from fovea.errors import Conflict, InvalidOption, Malformed
from services.llm_longctx.api.model_lookup import find_served_model
from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS, HostDep
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.decoder_model import DecoderModel
from services.llm_longctx.serving.lora.store import AdapterFiles
from shared.registry import CallContext
from shared.serving.host import Host

router = APIRouter(tags=["lora"], responses=ERROR_RESPONSES)

LoraId = Annotated[str, Path(description="Name of a stored adapter.")]

_EFFECTFUL = {**OPENAI_ERRORS, **EFFECTFUL}


@router.post("/v1/lora-adapters", openapi_extra=_EFFECTFUL)
async def add(body: LoraAdapterRequest, request: Request, host: HostDep) -> LoraAdapterEntry:
    """Store an adapter in the layout of peft; requests use it by its name as `model`."""
    adapter = _find_decoder(host, body.model, request)

    def read() -> AdapterFiles:
        try:
            return AdapterFiles(body.config, base64.b64decode(body.weights, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Malformed(f"weights is not base64: {error}.", field="weights") from error

    return await asyncio.to_thread(lambda: _add(body.name, read(), adapter, host, request))


@router.get("/v1/lora-adapters", openapi_extra=OPENAI_ERRORS)
async def list_all(request: Request, host: HostDep) -> LoraAdapterList:
    """The caller's adapters, and those that all callers may use, by name."""
    return LoraAdapterList(data=await asyncio.to_thread(_find_decoder(host, None, request).loras.list_all))


@router.delete("/v1/lora-adapters/{name}", openapi_extra=OPENAI_ERRORS)
async def delete(name: LoraId, request: Request, host: HostDep) -> LoraAdapterDeleted:
    """Delete one of the caller's adapters; requests that have begun go on with it."""
    await asyncio.to_thread(_find_decoder(host, None, request).loras.delete, name)
    _call_of(request).audit = {"act": "adapter deleted", "adapter": name}
    return LoraAdapterDeleted(id=name)


@router.post("/v1/load_lora_adapter", openapi_extra=_EFFECTFUL, response_class=PlainTextResponse)
async def load(body: LoadLoraAdapter, request: Request, host: HostDep) -> PlainTextResponse:
    """Store an adapter from a folder of the server for the caller, in vLLM's form."""
    adapter = _find_decoder(host, None, request)

    def add_folder() -> None:
        _add(body.lora_name, adapter.loras.read_folder(body.lora_path), adapter, host, request)

    await asyncio.to_thread(add_folder)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", openapi_extra=_EFFECTFUL, response_class=PlainTextResponse)
async def unload(body: UnloadLoraAdapter, request: Request, host: HostDep) -> PlainTextResponse:
    """Delete one of the caller's adapters, in vLLM's form."""
    await delete(body.lora_name, request, host)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _add(name: str, files: AdapterFiles, adapter: DecoderAdapter, host: Host, request: Request) -> LoraAdapterEntry:
    if name in host.names():
        raise Conflict(f"A model is called {name!r}.", hint="Choose another name.", field="name")
    entry = adapter.loras.add(name, files, files.build(adapter.engine.model))
    _call_of(request).audit = {"act": "adapter added", "model": adapter.name, "adapter": name}
    return entry


def _find_decoder(host: Host, name: str | None, request: Request) -> DecoderAdapter:
    """The adapter, for the caller's tenant, of a decoder; without a name of the first that is loaded."""
    chat = host.tasks().get("chat", [])
    loaded = (model for model in chat if isinstance(host.slot(model).servable, DecoderModel))
    model = find_served_model(host, name or next(loaded, None), request)
    adapter = model.adapter.of_tenant(_call_of(request).tenant)
    if not isinstance(adapter, DecoderAdapter):
        raise InvalidOption(f"The model {adapter.name!r} takes no LoRA adapters.", field="model")
    if adapter.engine.runner.team is not None:
        detail = "Adapters need the whole model in one process, and several hold this one."
        raise InvalidOption(detail, hint="Set FOVEA_LLM_TENSOR_PARALLEL=1.", field="model")
    return adapter


def _call_of(request: Request) -> CallContext:
    run: CallContext = request.scope["fovea.run"]
    return run
