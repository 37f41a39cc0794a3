"""Fuzzing of every decoder of bytes from outside: seeds, edits of them, and the rule that only our errors come out."""
