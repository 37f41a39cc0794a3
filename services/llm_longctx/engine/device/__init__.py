"""Differences of the engine on a device: tokens drawn next to the logits, and steps recorded as graphs."""
