"""What every service may lean on. Knows no service; the layers inside are checked by import-linter."""
