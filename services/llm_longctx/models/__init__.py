"""Language models, one per file, found by scanning this folder."""
