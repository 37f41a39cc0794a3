"""Static files of the console: compressed, and cached for good below a path that holds a digest of them all.

The same files are also at `/console/static/…` without the digest, for links from elsewhere; these are revalidated.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

COMPRESSION = [Middleware(GZipMiddleware, minimum_size=600)]
"""Middleware of routes whose answers are compressed."""

_FOR_GOOD = "public, max-age=31536000, immutable"


class CachedFiles(StaticFiles):
    """Static files with a `Cache-Control` header."""

    def __init__(self, folder: Path, cache_control: str) -> None:
        super().__init__(directory=folder, check_dir=False)
        self._cache_control = cache_control

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with a file, and say how long it may be kept."""
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = self._cache_control
        return response


def digest_folders(folders: Iterable[Path]) -> str:
    """Digest the names and contents of all files in some folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def build_static_routes(
    root: str, folders: Mapping[str, Path], sheets: Iterable[Path]
) -> tuple[str, list[Route | Mount]]:
    """Build the routes of all static files below a URL; returns the URL with the digest, for pages, and the routes.

    Folders are given by their path below the root; the empty path comes last. `sheets` are served as one, `all.css`.
    """
    base = f"{root}/{digest_folders(folders.values())}"
    text = "\n".join(sheet.read_text("utf8") for sheet in sheets)

    async def serve_sheet(_request: Request) -> Response:
        return Response(text, media_type="text/css", headers={"cache-control": _FOR_GOOD})

    routes: list[Route | Mount] = [Route(f"{base}/all.css", serve_sheet, middleware=COMPRESSION)]
    for prefix, cache_control in ((base, _FOR_GOOD), (root, "no-cache")):
        routes += [
            Mount(f"{prefix}/{path}".rstrip("/"), CachedFiles(folder, cache_control), middleware=COMPRESSION)
            for path, folder in folders.items()
        ]
    return base, routes
