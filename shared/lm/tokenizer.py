"""Tokenizer of one model: text to ids and back, special tokens, chat template, streaming detokenizer.

Reads a Hugging Face folder with the `tokenizers` library; nothing in the folder is run but its Jinja template, in a
sandbox. Knows nothing about models, requests or sampling.
"""

import codecs
import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from fovea.errors import InvalidOption, Malformed, NotFound, in_field
from shared.lm.weights import read_json

_ENDS = frozenset({"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>"})
"""Special tokens that end an answer whatever a config lists."""

_SPACE = "▁"
"""How SentencePiece writes a space."""


_SHIELD = "\ufdd0"
"""Marks where the name of a special token in a user's text is broken; a code point that no text has as a character."""


class Tokenizer:
    """One model's tokenizer.

    Attributes:
        size: Number of token ids.
        eos: Ids that end an answer.
        start: Id that stands for an empty text: the model's first token, or one that ends texts.
        special: Ids that are never text.
        chat_template: Jinja source, or None for a model that was not made for chat.
        names: Texts of the special tokens that templates may use: `bos_token`, `eos_token`, ….
    """

    def __init__(
        self,
        library: Library,
        *,
        eos: frozenset[int] = frozenset(),
        chat_template: str | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Wrap a library tokenizer; `names` are the special tokens that templates may use (`bos_token`, …)."""
        self._library = library
        self._added = library.get_added_tokens_decoder()
        self._template = compile_template(chat_template) if chat_template else None
        self.names = dict(names or {})
        self.chat_template = chat_template
        self.size = library.get_vocab_size(with_added_tokens=True)
        self.eos = eos
        self.special = frozenset(i for i, token in self._added.items() if token.special)
        first = library.token_to_id(self.names["bos_token"]) if "bos_token" in self.names else None
        self.start: int = first if first is not None else min(eos, default=0)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load the tokenizer of a Hugging Face folder; `NotFound` without one, `Malformed` if its files are broken."""
        facts = _optional(folder / "tokenizer_config.json")
        library = _library(folder)
        names = {name: text for name, value in facts.items() if name.endswith("_token") and (text := _text(value))}
        ends = {library.token_to_id(names["eos_token"])} if "eos_token" in names else set()
        for file in ("config.json", "generation_config.json"):
            stated = _optional(folder / file).get("eos_token_id")
            ends |= set(stated if isinstance(stated, list) else [stated])
        added = library.get_added_tokens_decoder().items()
        ends |= {i for i, token in added if token.special and token.content in _ENDS}
        eos = frozenset(i for i in ends if isinstance(i, int))
        return cls(library, eos=eos, chat_template=_chat_template(folder, facts), names=names)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text; `special` puts the model's own first token in front where it has one."""
        first, *rest = self._split_shielded(text)
        return self._read(first, special) + [token for part in rest for token in self._read(part, special=False)]

    def _read(self, text: str, special: bool) -> list[int]:
        """The ids of a text; in a batch of one, for which the library lets other threads run meanwhile."""
        ids: list[int] = self._library.encode_batch([text], add_special_tokens=special)[0].ids
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """Return the text of ids; without `special`, tokens that are never text are left out."""
        text: str = self._library.decode(list(ids), skip_special_tokens=not special)
        return text

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for; a special token's are its name."""
        if token in self._added:
            return str(self._added[token].content).encode()
        written = self._library.id_to_token(token)
        if written is None:
            return b""
        if self._byte_level:
            return bytes(self._alphabet[letter] for letter in written if letter in self._alphabet)
        if written.startswith("<0x") and written.endswith(">") and len(written) == 6:
            return bytes([int(written[3:5], 16)])
        return str(written).replace(_SPACE, " ").encode()

    def token_text(self, token: int) -> str:
        r"""Return a token as text; one that is a piece of a character is written `bytes:\xe2\x82`."""
        raw = self.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        names: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Render the prompt of a conversation; an answer begins where it ends if `add_generation_prompt` is set.

        `tools` are functions for templates that take them, `template` Jinja source in place of the model's own, `names`
        more names for it. Everything in them is text, also where it reads like a special token. `show` gives the text
        as people read it. Raises InvalidOption if there is no template, or it refuses the messages.
        """
        with in_field("chat_template"):
            compiled = self._template if template is None else compile_template(template)
        if compiled is None:
            detail = "This model has no chat template."
            raise InvalidOption(detail, hint="Use /v1/completions, or another model.", field="messages")
        try:
            return compiled.render(
                self.names | self._shield(dict(names)),
                messages=self._shield(messages),
                add_generation_prompt=add_generation_prompt,
                tools=None if tools is None else self._shield(tools),
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            detail = f"The model's chat template refuses these messages: {error}."
            raise InvalidOption(detail, field="messages") from error

    def show(self, text: str) -> str:
        """Return the prompt of a conversation without the marks by which `encode` knows what is text."""
        return "".join(self._split_shielded(text))

    def _shield(self, value: Any) -> Any:
        """Text of a message in which names of special tokens are broken, so that `encode` reads them as plain text."""
        if isinstance(value, str):
            for name in self._special_names:
                value = value.replace(name, name[0] + _SHIELD + name[1:])
            return value
        if isinstance(value, Mapping):
            return {self._shield(key): self._shield(each) for key, each in value.items()}
        return [self._shield(each) for each in value] if isinstance(value, list | tuple) else value

    def _split_shielded(self, text: str) -> Iterator[str]:
        """A rendered text in parts, cut where names of special tokens are broken."""
        at = 0
        if _SHIELD in text:
            names = "|".join(re.escape(name[0] + _SHIELD + name[1:]) for name in self._special_names)
            for found in re.finditer(names, text):
                yield text[at : found.start() + 1]
                at = found.start() + 2
        yield text[at:]

    @cached_property
    def _special_names(self) -> tuple[str, ...]:
        """Texts that `encode` reads as special tokens; one that no text can name is not among them."""
        names = (str(self._added[i].content) for i in sorted(self.special) if i in self._added)
        return tuple(name for name in names if len(name) > 1)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token: n bytes of text are at least n / longest tokens."""
        return max((len(self.token_bytes(i)) for i in range(self.size)), default=1) or 1

    @cached_property
    def _byte_level(self) -> bool:
        return isinstance(self._library.decoder, decoders.ByteLevel)

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        """Letters of byte-level vocabularies → bytes: printable Latin-1 is itself, the rest follows at U+0100."""
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        moved = [byte for byte in range(256) if byte not in plain]
        return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(moved)}


class Detokenizer:
    """Streaming detokenizer: tokens to text, whole characters at a time."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        """Start a text; with `special`, special tokens show as their names."""
        self._tokenizer = tokenizer
        self._hidden = frozenset() if special else tokenizer.special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that `token` completes; nothing for hidden tokens and for pieces of a character."""
        if token in self._hidden:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def end(self) -> str:
        """Return what is left: a replacement character where the last one stayed incomplete."""
        return self._decoder.decode(b"", final=True)


def _library(folder: Path) -> Library:
    try:
        if (folder / "tokenizer.json").is_file():
            return Library.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            library = Library(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
            library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            library.decoder = decoders.ByteLevel()
            return library
    except Exception as error:  # the library raises a bare Exception
        raise Malformed(f"The tokenizer of {folder.name} can't be read: {error}.") from error
    detail = f"{folder.name} has no tokenizer.json."
    raise NotFound(detail, hint="A model folder has config.json, safetensors and tokenizer.json.")


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _text(value: Any) -> str | None:
    """A special token, which files write as text or as an object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _chat_template(folder: Path, facts: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    found = facts.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template in a sandbox; `Malformed` if it is not Jinja."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def now(form: str) -> str:
        return dt.datetime.now(tz=dt.UTC).strftime(form)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals |= {"raise_exception": refuse, "strftime_now": now}
    try:
        return sandbox.from_string(source)
    except (jinja2.TemplateError, SyntaxError) as error:
        raise Malformed(f"The chat template can't be read: {error}.") from error
