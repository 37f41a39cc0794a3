"""Text on the wire: OpenAI's chat and completion protocol, and the tokenizer's two routes.

Fields of vLLM have its names and meanings; those that neither has are marked as ours. `fovea.api.request_fields`
says what becomes of all others.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from fovea.api.bounded_lists import Messages, Texts, Tokens, Tools
from fovea.api.interventions import MAX_CAPTURES, MAX_INTERVENTIONS, Capture, Captured, Intervention
from fovea.api.longctx import ComparedAnswer, LongctxAnswer, LongctxOptions, LongctxUsage
from fovea.api.sampling import NullIsAbsent, SamplingOptions, TokenId
from fovea.api.structured import ResponseFormat
from fovea.api.tools import Tool, ToolCall, ToolCallDelta, ToolChoice

FinishReason = Literal["stop", "length", "tool_calls"]


class StreamOptions(BaseModel, extra="allow"):
    """Facts of a stream besides the answer."""

    include_usage: bool = Field(False, description="Send the usage in a last chunk without choices.")
    continuous_usage_stats: bool = Field(False, description="With include_usage: each chunk has the usage so far.")


class RequestOptions(SamplingOptions):
    """Options of chats, completions and responses."""

    model: str | None = Field(None, description="Name of the model; left out, the default one.")
    stream: bool = Field(False, description="Answer as server-sent events.")
    longctx: LongctxOptions | None = Field(None, description="Ours: attention method, budget, plan.")
    interventions: list[Intervention] | None = Field(
        None, max_length=MAX_INTERVENTIONS, description="Ours: changes inside the model, in order."
    )
    capture: list[Capture] | None = Field(
        None, max_length=MAX_CAPTURES, description="Ours: activations, attention rows and logit lens to return."
    )
    session_id: str | None = Field(None, description="Ours: the session that remembers, for models with a memory.")
    strict: bool = Field(False, description="Ours: refuse fields that are not known here.")


class GenerationOptions(RequestOptions):
    """Options of a chat and a completion besides the prompt."""

    n: int = Field(1, ge=1, le=64, description="Answers per prompt.")
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = Field(
        None, ge=0, le=20, description="Return the prompt's log-probabilities, and of so many likeliest tokens."
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="Keep so many tokens of the prompt; -1: as many as leave room for the answer."
    )
    truncation_side: Literal["left", "right"] = Field("left", description="Which end of the prompt is cut off.")
    add_special_tokens: bool | None = Field(
        None, description="Put the model's first token in front of the prompt; left out, not in chats."
    )
    user: str | None = Field(None, description="Taken and ignored.")
    service_tier: str | None = Field(None, description="Taken and ignored; `longctx.priority` is ours.")
    metadata: dict[str, Any] | None = Field(None, description="Taken and ignored.")
    store: bool | None = Field(None, description="Taken and ignored: nothing is stored.")
    response_format: ResponseFormat | None = Field(
        None,
        description="`text`, `json_object`, `json_schema`, `structural_tag`, or ours: `choice`, one of whose `choices` "
        "is answered.",
    )
    compare: list[str | LongctxOptions] | None = Field(
        None,
        min_length=2,
        max_length=8,
        description="Ours: methods that each answer (a name, or as `longctx`): a choice each, and `comparison`.",
    )
    document_id: str | None = Field(None, description="Ours: the document that the prompt is about, read once before.")
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    @property
    def longest(self) -> int | None:
        """Longest answer in tokens, by the newer name if it is given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ContentPart(BaseModel, extra="allow"):
    """A piece of a message; only text is understood."""

    type: str
    text: str | None = None


class ChatMessage(BaseModel, extra="allow"):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Messages[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = Field(None, description="Of an assistant: what it thought, for its template.")
    tool_calls: Tools[ToolCall] | None = Field(None, description="Of an assistant: what it called.")
    tool_call_id: str | None = Field(None, description="Of a tool: the call that it answers.")

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.content is None and self.role not in {"assistant", "tool"}:
            raise ValueError(f"a message of the {self.role} needs content")
        return self


class ChatRequest(GenerationOptions):
    """A conversation to go on with."""

    messages: Messages[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens; it wins.")
    logprobs: bool = Field(False, description="Tell the log-probability of each token.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="And of so many likeliest ones; needs logprobs.")
    tools: Tools[Tool] | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="`none`, `auto`, `required`, or one function by name.")
    parallel_tool_calls: bool | None = Field(None, description="With `required`: whether several calls may come.")
    add_generation_prompt: bool | None = Field(None, description="Whether an answer begins after the last message.")
    continue_final_message: bool = Field(False, description="Go on with the last message instead of answering it.")
    chat_template: str | None = Field(
        None, description="Jinja source in place of the model's own; only with FOVEA_LLM_REQUEST_TEMPLATES."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="More names for the template, such as `enable_thinking`."
    )
    reasoning_effort: str | None = Field(None, description="Where the template knows it; `none` turns thinking off.")
    include_reasoning: bool = Field(True, description="Return what the model thinks as `reasoning_content`.")


class CompletionRequest(GenerationOptions):
    """Text to go on with."""

    prompt: str | Tokens[TokenId] | Texts[str] | Texts[Tokens[TokenId]] = Field(
        description="A text or its token ids, or several."
    )
    max_tokens: int | None = Field(16, ge=0, description="Longest answer; 0 with echo only scores the prompt.")
    max_completion_tokens: int | None = Field(None, ge=0, description="The newer name of max_tokens; it wins.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Tell log-probabilities, and of so many likeliest.")
    echo: bool = Field(False, description="Answer with the prompt in front.")
    best_of: int | None = Field(None, ge=1, description="Not served beyond n.")


class PromptTokensDetails(BaseModel):
    """Tokens of the prompts by where they came from."""

    cached_tokens: int = Field(0, description="Tokens that came from the prefix cache.")


class Usage(BaseModel):
    """Tokens read and made; end tokens count."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails(cached_tokens=0)
    longctx: LongctxUsage | None = None
    unenforced: list[str] | None = Field(
        None, description="Ours: keywords of JSON Schemas that were left to the model, as no `strict` refused them."
    )


class TopLogprob(BaseModel):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token of the answer, and what else was likely there."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer, in nats, before temperature and penalties."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptLogprob(BaseModel):
    """A token of the prompt, or one that was likely in its place, as vLLM returns it."""

    logprob: float
    rank: int | None = Field(None, description="1 is the likeliest; null behind those asked for.")
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]
"""At each place of the prompt: token id → its log-probability; null for the first, which nothing precedes."""

StopReason = int | str
"""The end of an answer: the stop text, or the id of the stop token that the request named."""


class Reply(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = Field(None, description="The model's thoughts before its answer.")
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Reply
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason
    stop_reason: StopReason | None = None
    captured: list[Captured] | None = Field(None, description="Ours: what `capture` read.")


class _Answer(BaseModel):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None = None
    longctx: LongctxAnswer | None = Field(None, description="Ours: citations, and what is remembered.")
    comparison: list[ComparedAnswer] | None = Field(None, description="Ours: what `compare` found.")
    warnings: list[str] | None = Field(None, description="Ours: fields that were ignored, a sentence each.")


class ChatCompletion(_Answer):
    """The answers to a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None


class Delta(BaseModel):
    """Addition of a chunk to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    """Addition of a chunk to one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: StopReason | None = None
    captured: list[Captured] | None = Field(None, description="Ours: what `capture` read.")


class ChatChunk(_Answer):
    """A piece of a streamed answer; the one with the usage has no choices."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion as parallel lists; the prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: StopReason | None = None
    prompt_logprobs: PromptLogprobs | None = None
    captured: list[Captured] | None = Field(None, description="Ours: what `capture` read.")


class Completion(_Answer):
    """Completions of the prompts, whole or a chunk of them."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TokenizeRequest(
    NullIsAbsent, json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
):
    """Ours: a text, or a conversation as the chat with these fields reads it, to be cut into tokens."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages[ChatMessage] | None = Field(None, min_length=1)
    tools: Tools[Tool] | None = None
    tool_choice: ToolChoice | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_special_tokens: bool | None = Field(
        None, description="Put the model's first token in front; left out, of a plain text."
    )
    return_token_strs: bool = Field(False, description="Whether the answer has each token's text, too.")


class Tokenized(BaseModel):
    """The tokens, and the text they stand for after the template."""

    tokens: list[int]
    count: int
    prompt: str
    max_model_len: int
    token_strs: list[str] | None = Field(None, description="Text of each token, if asked for.")
    warnings: list[str] | None = Field(None, description="Fields that were ignored, a sentence each.")


class TokenizerInfo(BaseModel):
    """Facts about a tokenizer, by the names of vLLM and transformers."""

    tokenizer_class: str = "PreTrainedTokenizerFast"
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    model_max_length: int
    chat_template: str | None


class DetokenizeRequest(NullIsAbsent):
    """Ours: tokens to be joined into text."""

    model: str | None = None
    tokens: Tokens[TokenId]


class Detokenized(BaseModel):
    """The text."""

    prompt: str
    warnings: list[str] | None = Field(None, description="Fields that were ignored, a sentence each.")
