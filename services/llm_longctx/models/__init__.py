"""Language models by name, one per file; found by scan."""
