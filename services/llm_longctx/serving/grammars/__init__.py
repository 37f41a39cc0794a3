"""Grammars of constrained decoding: what `response_format` and `structured_outputs` allow, token by token."""
