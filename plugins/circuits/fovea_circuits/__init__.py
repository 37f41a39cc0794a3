"""Circuits: the heads of language models that do a task, by patching, attribution and simpler attention."""
