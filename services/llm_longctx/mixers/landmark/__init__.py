"""Landmark attention: the attention, its networks, sessions, and where blocks are kept."""
