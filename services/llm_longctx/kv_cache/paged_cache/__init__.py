"""Paged cache: what one sequence holds in pages, whole or most of it in few bits."""
