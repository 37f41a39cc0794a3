"""The verbs of `fovea` that speak to a gateway, one a file."""
