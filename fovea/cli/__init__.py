"""The `fovea` command: Typer commands over the client library."""
