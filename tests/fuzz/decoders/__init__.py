"""Decoders under fuzzing: each file's `HARNESSES` maps names to harnesses."""
