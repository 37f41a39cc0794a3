"""Request fields of OpenAI's and vLLM's APIs: which are served, accepted, refused or unknown on each route.

A route's model lists the fields that it serves. This table has those that are known beyond them; a field in neither is
unknown. It drives the checks of requests and the page `docs/compatibility.md`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel

from fovea.api.longctx import LongctxOptions
from fovea.api.sampling import GUIDED
from fovea.errors import InvalidOption

_MOST_WARNINGS: Final = 20
_LONGEST_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that is known and not served.

    Attributes:
        hint: Advice.
        default: A value that asks for nothing, and is accepted; where it is None, whatever is false or 0.
    """

    hint: str
    default: object = None

    def concerns(self, value: object) -> bool:
        """Whether a value asks for something."""
        if value == self.default or value in ("", [], {}):
            return False
        return bool(value) or self.default is not None


_BEAM = "Beam search is not served; ask for `n` answers with logprobs"
_FUNCTIONS = "Use tools and tool_choice"
_PICTURES = "The language models read text only"
_PLACED = "KV caches can't be moved between servers"
_TOKENS = "Ask for logprobs, or send the text to /tokenize"
_TEXT_ONLY = "The language models write text only"

REFUSED: Final[Mapping[str, Refusal]] = {
    "add_generation_prompt": Refusal("Send `input`", default=True),
    "add_special_tokens": Refusal("Send token ids without them", default=True),
    "audio": Refusal(_TEXT_ONLY),
    "background": Refusal("Send the request with `Prefer: respond-async`, which makes it a job"),
    "context_management": Refusal("Shorten the input yourself"),
    "chat_template": Refusal("Send `input`"),
    "chat_template_kwargs": Refusal("Send plain texts"),
    "continue_final_message": Refusal("Send `input`"),
    "conversation": Refusal("Send `store: true` and `previous_response_id`"),
    "cache_salt": Refusal("Cached prompts are separate per tenant already"),
    "documents": Refusal("Send them in chat_template_kwargs, if the template reads them"),
    "early_stopping": Refusal(_BEAM),
    "echo": Refusal("Chats don't repeat the conversation; completions do"),
    "ec_transfer_params": Refusal(_PLACED),
    "embed_dtype": Refusal("Vectors are float32", "float32"),
    "enable_response_messages": Refusal("Read `output`"),
    "endianness": Refusal("base64 is little-endian", "little"),
    "function_call": Refusal(_FUNCTIONS),
    "functions": Refusal(_FUNCTIONS),
    "image": Refusal(_TEXT_ONLY),
    "include": Refusal("Nothing beyond the answer is returned", ["reasoning.encrypted_content"]),
    "instruction": Refusal("Put it into the query"),
    "kv_transfer_params": Refusal(_PLACED),
    "length_penalty": Refusal(_BEAM, 1.0),
    "logits_processors": Refusal("Use logit_bias, bad_words, allowed_token_ids or structured_outputs"),
    "logprob_token_ids": Refusal("Ask for top_logprobs"),
    "max_tool_calls": Refusal("Calls are run by the caller, who can count them"),
    "max_tokens_per_doc": Refusal("Shorten the documents"),
    "max_tokens_per_query": Refusal("Shorten the query"),
    "media_io_kwargs": Refusal(_PICTURES),
    "messages": Refusal("Send `input`"),
    "messages.audio": Refusal(_TEXT_ONLY),
    "messages.function_call": Refusal("Use tool_calls"),
    "mm_payload": Refusal(_PICTURES),
    "mm_processor_kwargs": Refusal(_PICTURES),
    "modalities": Refusal(_TEXT_ONLY, ["text"]),
    "moderation": Refusal("Moderate with a model of your own"),
    "padding": Refusal("Vectors don't depend on padding", "do_not_pad"),
    "previous_input_messages": Refusal("Send previous_response_id, or all items in `input`"),
    "priority": Refusal("Use `longctx.priority`"),
    "prompt": Refusal("Stored prompts are not served; send the text"),
    "prompt_embeds": Refusal("Send text or token ids"),
    "repetition_detection": Refusal("Use repetition_penalty"),
    "return_mm_kwargs": Refusal(_PICTURES),
    "return_prompt_text": Refusal("Send the conversation to /tokenize"),
    "return_token_ids": Refusal(_TOKENS),
    "return_token_offsets": Refusal("Completions return text_offset with logprobs"),
    "return_tokens_as_token_ids": Refusal(_TOKENS),
    "return_weight_versions": Refusal("`system_fingerprint` names the weights"),
    "routed_experts_prompt_start": Refusal("No model here has experts"),
    "stream_interval": Refusal("Each token is sent as it comes", 1),
    "suffix": Refusal("The models only read forwards"),
    "text.verbosity": Refusal("Ask for it in the conversation", "medium"),
    "thinking_token_budget": Refusal("Limit the answer with max_tokens"),
    "top_logprobs": Refusal("Use /v1/chat/completions, which returns log-probabilities"),
    "truncate_prompt_tokens": Refusal("Each model cuts what is too long for it", -1),
    "truncation_side": Refusal("Texts lose their end", "right"),
    "truncation": Refusal("Shorten the input yourself", "disabled"),
    "use_activation": Refusal("Vectors have length 1, scores are between 0 and 1", default=True),
    "use_beam_search": Refusal(_BEAM),
    "verbosity": Refusal("Ask for it in the conversation", "medium"),
    "vllm_xargs": Refusal("Nothing here reads them"),
    "watermarking": Refusal("Answers have no watermark"),
    "web_search_options": Refusal("Search yourself, and send what you found"),
}
"""Fields that are refused by name where the model does not have them, unless their value asks for nothing."""

ACCEPTED: Final[Mapping[str, str]] = {
    "*.annotations": "The model reads the text.",
    "*.cache_control": "Prompts are cached by what they say.",
    "*.encrypted_content": "Thoughts are not kept.",
    "*.id": "Items are read in their order.",
    "*.logprobs": "The model reads the text.",
    "*.phase": "The model reads the text.",
    "*.prompt_cache_breakpoint": "Prompts are cached by what they say.",
    "*.refusal": "Templates have no place for it.",
    "*.status": "Items are read in their order.",
    "*.summary": "Thoughts are returned whole.",
    "access_programs": "No program here has levels of access.",
    "background_options": "There is no background mode.",
    "guided_decoding_backend": "There is one backend.",
    "metadata": "Nothing is stored.",
    "prediction": "It would only make the answer faster.",
    "prompt_cache_key": "Prompts are cached by what they say.",
    "prompt_cache_options": "Prompts are cached by what they say.",
    "prompt_cache_retention": "Prompts are cached as long as there is room.",
    "request_id": "Send the header x-request-id.",
    "safety_identifier": "Users of a tenant are not told apart.",
    "service_tier": "There is one.",
    "spaces_between_special_tokens": "None are added.",
    "store": "Chats and completions are not stored.",
    "stream_options": "Streams of responses have no options.",
    "stream_options.include_obfuscation": "Nothing is padded.",
    "user": "Users of a tenant are not told apart.",
}
"""Fields that are accepted and change nothing in an answer; `*.` begins one of any nested object."""

_SAMPLED = """temperature top_p top_k min_p seed presence_penalty frequency_penalty repetition_penalty logit_bias stop
    stop_token_ids include_stop_str_in_output ignore_eos skip_special_tokens spaces_between_special_tokens
    structured_outputs watermarking user request_id session_id priority cache_salt kv_transfer_params ec_transfer_params
    vllm_xargs stream mm_payload return_mm_kwargs model"""
_GENERATED = f"""{_SAMPLED} n logprobs max_tokens stream_options use_beam_search length_penalty min_tokens bad_words
    allowed_token_ids truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids add_special_tokens
    response_format return_tokens_as_token_ids return_token_ids return_weight_versions return_token_offsets
    routed_experts_prompt_start repetition_detection thinking_token_budget stream_interval echo"""
_POOLED = """model user truncate_prompt_tokens truncation_side padding request_id priority mm_processor_kwargs
    cache_salt use_activation"""
_GUIDED = "guided_json guided_regex guided_choice guided_grammar guided_json_object guided_decoding_backend"

PEERS: Final[Mapping[str, Mapping[str, str]]] = {
    "/v1/chat/completions": {
        "OpenAI": """messages model audio frequency_penalty function_call functions logit_bias logprobs
            max_completion_tokens max_tokens metadata modalities moderation n parallel_tool_calls prediction
            presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort
            response_format safety_identifier seed service_tier stop store stream stream_options temperature
            tool_choice tools top_logprobs top_p user verbosity web_search_options""",
        "vLLM": f"""{_GENERATED} {_GUIDED} messages top_logprobs max_completion_tokens tools tool_choice
            parallel_tool_calls reasoning_effort include_reasoning add_generation_prompt continue_final_message
            documents chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs return_prompt_text""",
    },
    "/v1/completions": {
        "OpenAI": """model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed
            stop stream stream_options suffix temperature top_p user""",
        "vLLM": f"{_GENERATED} {_GUIDED} prompt suffix prompt_embeds",
    },
    "/v1/responses": {
        "OpenAI": """access_programs background background_options context_management conversation image include input
            instructions max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls
            previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention reasoning
            safety_identifier service_tier store stream stream_options temperature text tool_choice tools top_logprobs
            top_p truncation user""",
        "vLLM": f"""{_SAMPLED} background include input instructions max_output_tokens max_tool_calls metadata
            parallel_tool_calls previous_response_id prompt reasoning include_reasoning service_tier store text
            tool_choice tools top_logprobs truncation prompt_cache_key prompt_cache_options prompt_cache_retention
            safety_identifier media_io_kwargs mm_processor_kwargs enable_response_messages previous_input_messages
            chat_template_kwargs""",
    },
    "/v1/embeddings": {
        "OpenAI": "input model dimensions encoding_format user",
        "vLLM": f"""{_POOLED} input messages dimensions encoding_format embed_dtype endianness add_special_tokens
            add_generation_prompt continue_final_message chat_template chat_template_kwargs media_io_kwargs""",
    },
    "/v1/rerank": {
        "vLLM": f"""{_POOLED} query documents top_n max_tokens_per_query max_tokens_per_doc instruction
            chat_template_kwargs""",
    },
    "/v1/score": {
        "vLLM": f"""{_POOLED} text_1 text_2 queries documents items data_1 data_2 max_tokens_per_query
            max_tokens_per_doc instruction chat_template_kwargs""",
    },
}
"""Route → the fields of its request in OpenAI's client 3.57 and in vLLM 0.33 with the older `guided_*`."""


def check_fields(
    body: BaseModel,
    *,
    is_strict: bool = False,
    refused: Mapping[str, Refusal] = REFUSED,
    accepted: Collection[str] = ACCEPTED,
) -> list[str]:
    """Check the fields of a request that its model does not have.

    Args:
        body: The request, whose model allows more fields than it has.
        is_strict: Refuse unknown fields, too.
        refused: Fields that are known and not served.
        accepted: Fields that are known and change nothing.

    Returns:
        A sentence for each unknown field.

    Raises:
        InvalidOption: A field that is known and not served, or unknown under `is_strict`.
    """
    warnings = []
    for name, value, owner in _list_extra(body):
        keys = {re.sub(r"\[\d+\]", "", name), f"*.{name.rpartition('.')[2]}" if "." in name else name}
        refusal = next((refused[key] for key in keys if key in refused), None)
        if refusal is not None and refusal.concerns(value):
            raise InvalidOption(f"{name} is not served.", hint=f"{refusal.hint}.", field=name)
        if refusal is None and keys.isdisjoint(accepted):
            shown = name[:_LONGEST_NAME]
            if is_strict:
                raise InvalidOption(
                    f"There is no field {shown!r}.", hint="Leave it out, or leave out strict.", field=shown
                )
            warnings.append(f"There is no field {shown!r}{_suggest(name, owner)}: it was ignored.")
    return warnings[:_MOST_WARNINGS]


def find_fate(name: str, model: type[BaseModel]) -> tuple[str, str]:
    """Treatment of a field where this model is read: `served`, `accepted`, `refused` or `unknown`, and a note."""
    known = dict(_list_fields(model))
    note = known.get(name) or ""
    if name in GUIDED and "structured_outputs" in known:
        return "served", f"The older name of `structured_outputs.{GUIDED[name]}`."
    if name in known and not note.startswith("Taken and ignored"):
        return "served", note
    if name in REFUSED:
        return "refused", f"{REFUSED[name].hint}."
    return ("accepted", ACCEPTED[name]) if name in ACCEPTED else ("unknown", "")


def _list_extra(body: BaseModel, path: str = "") -> Iterator[tuple[str, Any, BaseModel]]:
    """Path, value and object of each field that a model does not have; nested ones only where they ask for something.

    The knobs of attention methods are not fields of `LongctxOptions`: the method checks them.
    """
    if isinstance(body, LongctxOptions):
        return
    for name, value in (body.model_extra or {}).items():
        if not path or value not in (None, "", [], {}):
            yield path + name, value, body
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, BaseModel):
            yield from _list_extra(value, f"{path}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for i, one in enumerate(value):
                if isinstance(one, BaseModel):
                    yield from _list_extra(one, f"{path}{name}[{i}].")


def _list_fields(model: type[BaseModel]) -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        choices = getattr(field.validation_alias, "choices", None) or [field.alias or name]
        yield from ((str(one), field.description) for one in choices)


def _suggest(name: str, body: BaseModel) -> str:
    """Did you mean …?"""
    known = [field for field, _ in _list_fields(type(body))]
    close = get_close_matches(name.rpartition(".")[2][:_LONGEST_NAME], known, 1, 0.75)
    return f" (did you mean {close[0]!r}?)" if close else ""
