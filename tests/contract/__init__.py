"""Contracts that every discovered thing keeps, written once."""
