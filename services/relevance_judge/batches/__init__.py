"""FILL IN: what this room is."""
