"""Request fields of OpenAI's and vLLM's APIs: which are served, accepted, refused or unknown on each route.

A route's model lists the fields that it serves. These tables have those that are known beyond them; a field in neither
is unknown. They drive the checks of requests and the page `docs/compatibility.md`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel

from fovea.api.longctx import LongctxOptions
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
        return value not in (self.default, "", [], {}) and (bool(value) or self.default is not None)


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
    "*.index": "Calls are read in their order.",
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

    Raises InvalidOption: A field that is known and not served, or unknown under `is_strict`.
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
                raise InvalidOption(f"There is no field {shown!r}.", hint="Leave out the field or strict.", field=shown)
            warnings.append(f"There is no field {shown!r}{_suggest(name, owner)}: it was ignored.")
    return warnings[:_MOST_WARNINGS]


def list_fields(model: type[BaseModel]) -> Iterator[tuple[str, str | None]]:
    """The names under which a model takes its fields, and their descriptions."""
    for name, field in model.model_fields.items():
        choices = getattr(field.validation_alias, "choices", None) or [field.alias or name]
        yield from ((str(one), field.description) for one in choices)


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


def _suggest(name: str, body: BaseModel) -> str:
    known = [field for field, _ in list_fields(type(body))]
    close = get_close_matches(name.rpartition(".")[2][:_LONGEST_NAME], known, 1, 0.75)
    return f" (did you mean {close[0]!r}?)" if close else ""
