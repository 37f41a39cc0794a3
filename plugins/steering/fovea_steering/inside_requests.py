"""Requests that look inside a model or change it: the scope of the key, the audit log, taps and captures."""

from fovea.api.interventions import AddIntervention, Captured
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption
from fovea_steering.build_taps import TapBuilder
from fovea_steering.capture_store import CaptureStore
from fovea_steering.capture_writer import CaptureWriter
from fovea_steering.vector_store import VectorStore
from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.serving.adapters.base import TextModelAdapter
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.answer_text import OutputChunk
from services.llm_longctx.serving.request_extension import RequestExtension
from shared.registry import CallContext

SCOPE = "interventions"
"""Scope of a key that may intervene, capture and make steering vectors."""


class InsideRequest(RequestExtension):
    """Interventions and captures of one request."""

    def __init__(self, adapter: TextModelAdapter, request: GenerationOptions, run: CallContext) -> None:
        changes, reads = request.interventions or [], request.capture or []
        field = "interventions" if changes else "capture"
        run.require_scope(SCOPE, f"`{field}`")
        named = [one.vector for one in changes if isinstance(one, AddIntervention) and isinstance(one.vector, str)]
        facts = {
            "interventions": ", ".join(one.type for one in changes),
            "vectors": ", ".join(named),
            "captures": ", ".join(one.type for one in reads),
        }
        run.audit = {"act": "interventions", "model": request.model or "", **{k: v for k, v in facts.items() if v}}
        if not isinstance(adapter, DecoderAdapter):
            detail = f"The model {adapter.name!r} takes no {field}: it has no named activations."
            raise InvalidOption(detail, hint="Decoders with pages do, such as smollm2-135m-instruct.", field=field)
        objects, weights = adapter.tenant_objects, adapter.engine.runner.weights_sha256
        files = None if objects is None else CaptureStore(objects)
        self._options = request
        self._taps = TapBuilder(adapter.engine.model.config, weights, VectorStore(objects), files)
        self._writer = CaptureWriter(adapter.tokenizer, files, weights)

    def extend(self, request: GenerationRequest) -> None:
        request.taps = self._taps.build(self._options, len(request.prompt_ids), request.max_tokens)
        self._writer.add_prompt(request.taps.captures, len(request.prompt_ids), len(request.samplings))

    def capture(self, piece: OutputChunk) -> list[Captured]:
        return self._writer.write(piece)
