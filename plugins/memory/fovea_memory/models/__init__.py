"""Models with a memory, one per file, found by scanning this package."""
