"""Drafts of an answer's next tokens, which the decoder verifies."""
