"""Allocator: pages and runs of pages, private to one (layer, key/value head), whole or in few bits."""
