"""How head plans are made: one file per kind, and the passkey data that gates are trained on."""
