"""Rotated pages in Triton: parts of the kernel that reads packed pages."""
