"""`fovea docs`: serves the documentation on this machine, or builds it as a static folder."""

import functools
import http.server
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fovea_docs.site import build_site

_RELEASED = Path(__file__).parent / "site"
"""The site of a release, which its wheel holds."""


def docs(
    build: Annotated[Path | None, typer.Option(help="Build the site into this folder, and stop.")] = None,
    version: Annotated[
        str | None, typer.Option(help="With --build: keep one folder for each version; this one is the latest.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8090,
) -> None:
    """Serve the documentation of Fovea with search on http://127.0.0.1:8090, or build it as a static folder."""
    if build is not None:
        build_site(build, version)
        typer.echo(f"The site is in {build}.")
        return
    with tempfile.TemporaryDirectory(prefix="fovea-docs-") as folder:
        site = _RELEASED
        if not site.is_dir():
            site = Path(folder)
            build_site(site)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
        with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
            typer.echo(f"Documentation: http://127.0.0.1:{server.server_port} (Ctrl-C stops)")
            server.serve_forever()
