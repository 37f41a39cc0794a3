"""Object store: bytes by path in a folder, in S3, Google Cloud Storage or Azure, chosen by URL.

An object appears whole or not at all. Credentials of a cloud come from its usual environment variables, which `obstore`
reads. Calls block: use them off the event loop. Knows paths and bytes; knows nothing about what they mean.

    weights/<name>.safetensors|json|onnx        imported checkpoints and trained models
    graphs/<name>-<digest>-<tag>.onnx|json      exported graphs
    blobs/<job id>/<part>                       bodies too large for Redis
    tenants/<digest>/<kind>/…                   what a tenant made: head plans, calibrations, batches, reports …
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import LocalStore, from_url

from fovea.errors import NotReady, StorageFull
from shared.settings import Settings

_SEGMENT: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._@=+-]{1,255}")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
_REFUSED: Final = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=15)}
# Plain HTTP is used where the operator's own endpoint has it (a server in the cluster), never otherwise.
_CLIENT: Final[Any] = {"connect_timeout": "3s", "timeout": "60s", "allow_http": True}


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """Facts of an object: its path below the store's, its size in bytes, and when it was written."""

    path: str
    size: int
    modified: datetime
    etag: str


@dataclass(frozen=True)
class _Root:
    """The store of a URL; opened, and where it is a folder created, with the first call."""

    url: str

    @cached_property
    def folder(self) -> Path | None:
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    @cached_property
    def backend(self) -> Any:
        if self.folder is None:
            return from_url(self.url, client_options=_CLIENT, retry_config=_RETRY)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return LocalStore(self.folder, automatic_cleanup=True)


@dataclass(frozen=True)
class ObjectStore:
    """The objects below one path of one URL; `ObjectStore.open(url)` are all of it. Thread-safe."""

    _root: _Root
    _path: str = ""

    @classmethod
    def open(cls, url: str) -> Self:
        """The store behind `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.

        Nothing is opened or created before the first call.
        """
        return cls(_Root(url))

    @property
    def folder(self) -> Path | None:
        """The folder that these objects are files of, where the store is one."""
        return None if self._root.folder is None else self._root.folder / self._path

    def under(self, *segments: str) -> Self:
        """The store of the objects below a path of this one."""
        return type(self)(self._root, f"{self._full('/'.join(segments))}/")

    def of_tenant(self, tenant: str) -> Self:
        """The store of what a tenant made; the tenant as a digest, because its characters are not checked."""
        return self.under("tenants", sha256(tenant.encode("utf8", "surrogatepass")).hexdigest()[:24])

    def get(self, path: str) -> bytes | None:
        """The content of an object; None where there is none."""
        with _translated():
            try:
                return bytes(obstore.get(self._root.backend, self._full(path)).bytes())
            except FileNotFoundError:
                return None

    def put(self, path: str, content: bytes) -> None:
        """Store an object durably; replaces what was there."""
        with _translated():
            obstore.put(self._root.backend, self._full(path), content)
            self._sync(path)

    def create(self, path: str, content: bytes) -> bool:
        """Store an object durably unless there is one; whether it was stored. Of several writers one wins."""
        with _translated():
            try:
                obstore.put(self._root.backend, self._full(path), content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                return False
            self._sync(path)
        return True

    def delete(self, *paths: str) -> None:
        """Delete objects; unknown ones are ignored."""
        with _translated():
            for path in paths:
                try:
                    obstore.delete(self._root.backend, self._full(path))
                except FileNotFoundError:
                    continue

    def delete_all(self) -> None:
        """Delete every object of this store."""
        self.delete(*(facts.path for facts in self.list_objects()))

    def head(self, path: str) -> ObjectFacts | None:
        """The facts of an object; None where there is none."""
        with _translated():
            try:
                return _facts(obstore.head(self._root.backend, self._full(path)), len(self._path))
            except FileNotFoundError:
                return None

    def list_objects(self) -> Iterator[ObjectFacts]:
        """The facts of all objects, in no order. Objects that come or go meanwhile may be missing."""
        cut = len(self._path)
        with _translated():
            for page in obstore.list(self._root.backend, prefix=self._path or None):
                yield from (_facts(found, cut) for found in page)

    def list_names(self) -> list[str]:
        """First segments of all paths, in order: the names of objects and of the groups below them."""
        # By their objects: a folder that a failed write left behind is not a group.
        return sorted({facts.path.partition("/")[0] for facts in self.list_objects()})

    def upload(self, path: str, file: Path) -> None:
        """Store a file's content, in parts where it is large."""
        with _translated():
            obstore.put(self._root.backend, self._full(path), file)
            self._sync(path)

    def download(self, path: str, file: Path) -> bool:
        """Write an object to a file, whole or not at all; whether there is such an object."""
        draft = file.with_name(f".{file.name}.{os.getpid()}.{os.urandom(4).hex()}")
        with _translated():
            try:
                stream = obstore.get(self._root.backend, self._full(path)).stream()
            except FileNotFoundError:
                return False
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as out:
                    for part in stream:
                        out.write(part)
                draft.replace(file)
            finally:
                draft.unlink(missing_ok=True)
        return True

    def _full(self, path: str) -> str:
        return self._path + _check(path)

    def _sync(self, path: str) -> None:
        """Make a file and its name durable: `obstore` leaves both to the kernel.

        An object that another writer has removed meanwhile was stored, and needs no more.
        """
        if (root := self._root.folder) is None:
            return
        file = root / self._full(path)
        for place in (file, *(parent for parent in file.parents if parent == root or root in parent.parents)):
            with suppress(FileNotFoundError):
                handle = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)


def open_object_store(settings: Settings) -> ObjectStore:
    """The object store that the settings name; the embedded one is the data folder."""
    return ObjectStore.open(settings.object_store_url)


def _facts(found: Any, cut: int) -> ObjectFacts:
    return ObjectFacts(found["path"][cut:], found["size"], found["last_modified"], found["e_tag"] or "")


def _check(path: str) -> str:
    """Refuse what is not a path of an object: names of users are checked before they become part of one."""
    if not all(map(_SEGMENT.fullmatch, path.split("/"))):
        raise ValueError(f"{path[:200]!r} is not the path of an object")
    return path


@contextmanager
def _translated() -> Iterator[None]:
    """Turn every way in which a store can fail into an error that says what to do."""
    try:
        yield
    except (exceptions.BaseError, OSError) as error:
        # `obstore` gives the number of an operating system's error in its text alone.
        code = getattr(error, "errno", None) or next(map(int, _OS_ERROR.findall(str(error))), None)
        raise _to_error(error, code) from error


def _to_error(error: Exception, code: int | None) -> NotReady | StorageFull:
    if code in _FULL:
        return StorageFull("The object store is full.", hint="Free space, or point FOVEA_OBJECT_STORE elsewhere.")
    if code in {errno.EROFS, errno.EACCES, errno.EPERM} or isinstance(error, _REFUSED):
        hint = "Check the credentials, or that the folder of FOVEA_OBJECT_STORE and FOVEA_DATA_DIR may be written."
        return NotReady("The object store refuses us: it is read-only, or the credentials are wrong.", hint=hint)
    return NotReady("The object store can't be reached.", hint="Try again; see FOVEA_OBJECT_STORE.", retry_after=2)
