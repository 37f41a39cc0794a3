"""A client of Label Studio: pictures of tasks, and what people labelled in a project.

Only the Label Studio that this process was told of is asked: no request can name another.
"""

import re
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import httpx2

from fovea.errors import InvalidOption, NotReady, PermissionDenied, TooLarge

HTTP_REFUSED = (401, 403)

PICTURES = re.compile(r"/(?:data|storage-data/uploaded|(?:tasks|projects)/[0-9]+/resolve)/")
"""Where Label Studio has pictures of tasks: uploads and local files, and the route that resolves those of a storage."""


class LabelStudio:
    """One Label Studio, at the address that people open; its answers have at most `limit` bytes.

    The token is an access token of an account, personal or legacy.
    """

    def __init__(self, url: str, token: str, *, limit: int, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._token, self._limit = token, limit
        self._root = urlsplit(url.rstrip("/"))
        self._client = httpx2.AsyncClient(
            base_url=url.rstrip("/") + "/", transport=transport, timeout=60, trust_env=False, follow_redirects=False
        )

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    def owns(self, address: str) -> bool:
        """Whether an address of a task's data is a file of this Label Studio.

        Raises InvalidOption: it is not an address.
        """
        found = _split(address)
        if not found.scheme and not found.netloc:
            return found.path.startswith("/")
        return (found.scheme, found.netloc) == (self._root.scheme, self._root.netloc)

    async def fetch_picture(self, address: str) -> bytes:
        """The bytes of a picture.

        Raises:
            InvalidOption: It lies elsewhere, or is not an address, or no picture of a task (the token opens more).
            NotReady, PermissionDenied, TooLarge: See `_get`.
        """
        if not self.owns(address):
            hint = "Upload pictures to Label Studio, or serve them as its local files."
            raise InvalidOption("The task's picture does not lie in Label Studio.", hint=hint, field="tasks")
        found = _split(address)
        if not self._is_picture(found.path):
            hint = "Pictures lie below /data/, /storage-data/uploaded/, or a task's or project's /resolve/."
            raise InvalidOption("The address is not a picture of a task.", hint=hint, field="tasks")
        # Whole, with our own host: of a path alone, "/http://elsewhere" would become an address elsewhere.
        place = f"{self._root.scheme}://{self._root.netloc}/{found.path.lstrip('/')}"
        return await self._get(f"{place}?{found.query}" if found.query else place)

    def _is_picture(self, path: str) -> bool:
        """Whether a path lies below Label Studio's own and is one of `PICTURES`, however it is written."""
        plain, root = unquote(path), unquote(self._root.path)
        steps = plain.replace("\\", "/").split("/")
        winding = ".." in steps or "" in steps[1:-1] or "\\" in plain
        return not winding and plain.startswith(root) and PICTURES.match(plain[len(root) :]) is not None

    async def export_tasks(self, project: int) -> list[dict[str, Any]]:
        """The annotated tasks of a project, each with its annotations."""
        path = f"api/projects/{project}/export?exportType=JSON&download_all_tasks=false"
        answer = httpx2.Response(200, content=await self._get(path)).json()
        return [task for task in answer if isinstance(task, dict)] if isinstance(answer, list) else []

    async def label_config(self, project: int) -> str:
        """The labelling configuration of a project."""
        answer = httpx2.Response(200, content=await self._get(f"api/projects/{project}")).json()
        return str(answer.get("label_config", ""))

    async def _get(self, address: str) -> bytes:
        """The body of an answer; `address` is whole, or relative to Label Studio's.

        Raises:
            InvalidOption: It is not an address.
            NotReady: Label Studio can't be reached, or answers with an error.
            PermissionDenied: It does not take the token.
            TooLarge: The answer is.
        """
        try:
            headers = {"authorization": await self._authorize()}
            async with self._client.stream("GET", address, headers=headers) as answer:
                if answer.status_code in HTTP_REFUSED:
                    hint = "Set FOVEA_LABEL_STUDIO_TOKEN to an access token of an account that sees the project."
                    raise PermissionDenied("Label Studio does not take the token.", hint=hint)
                if answer.is_redirect:
                    raise NotReady("Its storage has pre-signed URLs, which are not followed: switch them off there.")
                if answer.status_code != httpx2.codes.OK:
                    raise NotReady(f"Label Studio answered {answer.status_code}.")
                body = bytearray()
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > self._limit:
                        raise TooLarge(f"Label Studio sent more than {self._limit:,} bytes.")
                return bytes(body)
        except httpx2.InvalidURL as error:
            raise _refuse_address() from error
        except httpx2.HTTPError as error:
            raise NotReady(f"Label Studio can't be reached ({type(error).__name__}).") from error

    async def _authorize(self) -> str:
        """A legacy token as it is; a personal one (a JWT) is exchanged for a short-lived one."""
        if self._token.count(".") != 2:  # a JWT has three parts
            return f"Token {self._token}"
        answer = await self._client.post("api/token/refresh", json={"refresh": self._token})
        if answer.status_code in HTTP_REFUSED:
            raise PermissionDenied("Label Studio does not take the token.", hint="It may have expired: make a new one.")
        if answer.status_code != httpx2.codes.OK:
            raise NotReady(f"Label Studio answered {answer.status_code} to its token.")
        return f"Bearer {answer.json().get('access', '')}"


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise _refuse_address() from error


def _refuse_address() -> InvalidOption:
    return InvalidOption("The address of the task's picture can't be read.", field="tasks")
