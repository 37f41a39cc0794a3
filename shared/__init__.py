"""Code shared by all services. Knows no service; the layers inside are checked by import-linter."""
