"""The `fovea` command: Typer commands over the client library. Knows the client; knows no server."""
