"""Grammars of constrained decoding: what `response_format` allows, byte by byte and token by token."""
