"""Reasoning parser: takes what a model thinks out of the text of an answer while it is written.

Forms that models were trained on are subclasses, one file each in this package. Knows text; knows no tokens.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from services.llm_longctx.serving.scan_forms import scan_forms


class ReasoningParser(ABC):
    """Reads one answer.

    Class attributes:
        name: Name of the form.
        closing: Ends the thoughts.
    """

    name: ClassVar[str]
    closing: ClassVar[str]

    @classmethod
    @abstractmethod
    def detects(cls, template: str) -> bool:
        """Whether the models with a chat template think in this form."""

    @abstractmethod
    def __init__(self, prompt: str) -> None:
        """Read the answer to a rendered prompt, which may have begun the thinking."""

    @abstractmethod
    def feed(self, text: str) -> tuple[str, str]:
        """Additions of more text: to the thoughts, and to the answer."""

    @abstractmethod
    def end(self, *, is_cut: bool = False) -> tuple[str, str]:
        """The rest of both when the answer is over; with `is_cut`, at the token limit, half a tag is left out."""


def find_reasoning_parser(template: str | None) -> type[ReasoningParser] | None:
    """The form in which models with this chat template think; None where they do not, or in none that is known."""
    parsers = scan_forms(__name__.rpartition(".")[0], ReasoningParser)
    return next((parser for parser in parsers if template and parser.detects(template)), None)
