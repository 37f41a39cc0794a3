"""Tests of a real card."""
