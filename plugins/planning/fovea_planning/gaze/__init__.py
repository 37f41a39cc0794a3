"""Scanpaths: fixations decoded from logits, and the layout of the objects they visit."""
