"""A page of the console."""

from pathlib import Path

from services.gateway.console.page import Page

PAGE = Page(title="Words", folder=Path(__file__).parent, module="words.js")
