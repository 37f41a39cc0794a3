"""Image URLs: pictures that a request names by URL are fetched, where allowed, from public addresses only.

The host is resolved first, every address that it has must be public, and the connection goes to the address that was
checked: a name that resolves differently the second time, a redirect into the network, or an address written as an IPv6
form of a private one leads nowhere. Bytes are counted while they arrive.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx2
from pydantic import BaseModel

from fovea.errors import FoveaError, InvalidOption, TooLarge, in_field
from shared.serving import servable_schema
from shared.serving.http.request_parsing import ParsedRequest, is_url

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_REDIRECTS = 4
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether an address, and any IPv4 address inside of it, belongs to the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(inner is not None and not is_public(inner) for inner in inside):
            return False
    return address.is_global and not address.is_multicast


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches one file.

    Attributes:
        limit: Most bytes.
        seconds: Most time, redirects included.
        allowed: Which addresses may be connected to.
    """

    limit: int
    seconds: float = 10.0
    allowed: Callable[[Address], bool] = is_public

    async def fetch(self, url: str) -> bytes:
        """The bytes behind a URL.

        Raises InvalidOption: it is not an http(s) URL, leads to an address that is not public, the file is missing, or
        its server does not answer in time; TooLarge: more than `limit` bytes.
        """
        try:
            async with asyncio.timeout(self.seconds):
                return await self._follow(httpx2.URL(url))
        except TimeoutError as error:
            raise InvalidOption(f"The picture's server did not send it within {self.seconds:g} s.") from error
        except httpx2.InvalidURL as error:
            raise InvalidOption(f"This is not a URL: {error}.") from error
        except httpx2.HTTPError as error:
            raise InvalidOption("The picture's server could not be read from.") from error

    async def _follow(self, url: httpx2.URL) -> bytes:
        for _ in range(_MAX_REDIRECTS):
            found = await self._read(url)
            if isinstance(found, bytes):
                return found
            url = url.join(found)
        raise InvalidOption(f"The URL redirects more than {_MAX_REDIRECTS} times.")

    async def _read(self, url: httpx2.URL) -> bytes | str:
        """The file, or the URL of a redirect."""
        if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
            raise InvalidOption("A picture's URL must be http or https, with a host and without a password.")
        address = await self._resolve(url.host, url.port or (443 if url.scheme == "https" else 80))
        headers = {"host": url.netloc.decode(), "accept-encoding": "identity"}
        client = httpx2.AsyncClient(trust_env=False, timeout=self.seconds)
        request = client.build_request("GET", url.copy_with(host=str(address)), headers=headers)
        # The certificate must be the name's, though the address is pinned.
        request.extensions["sni_hostname"] = url.host
        async with client:
            answer = await client.send(request, stream=True, follow_redirects=False)
            async with contextlib.aclosing(answer):
                if answer.is_redirect and "location" in answer.headers:
                    return str(answer.headers["location"])
                if answer.status_code != httpx2.codes.OK:
                    raise InvalidOption(f"The picture's server answered {answer.status_code}.")
                return await self._read_bounded(answer)

    async def _read_bounded(self, answer: httpx2.Response) -> bytes:
        parts, size = [], int(answer.headers.get("content-length", 0))
        if size <= self.limit:
            size = 0
            async for part in answer.aiter_raw():  # a picture; what a server compressed could be of any size
                parts.append(part)
                size += len(part)
                if size > self.limit:
                    break
        if size > self.limit:
            raise TooLarge(f"The picture behind the URL has more than {self.limit:,} bytes.")
        return b"".join(parts)

    async def _resolve(self, host: str, port: int) -> Address:
        """The address to connect to: all that the host has must be allowed.

        Raises InvalidOption: one is not, or there is none.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise InvalidOption(f"There is no host {host[:100]!r}.") from error
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        if not addresses or not all(map(self.allowed, addresses)):
            # The address is not named: the answer would map the internal network.
            raise InvalidOption("The URL leads to an address that is not public.", hint="Send the picture itself.")
        return addresses[0]


async def fetch_pictures(parsed: ParsedRequest, model: type[BaseModel], fetcher: Fetcher) -> ParsedRequest:
    """Replace the URLs of a request by their content; in a list, by an error where one can't be fetched.

    Raises FoveaError: the request's only picture can't be fetched; `field` names it.
    """
    options, texts = dict(parsed.options), dict(parsed.texts)
    for name in servable_schema.blob_fields(model):
        if is_url(value := options.get(name)):
            options[name] = await _fetch_field(fetcher, value, name)
        elif name in texts and is_url(texts[name][-1]):
            options[name] = await _fetch_field(fetcher, texts.pop(name)[-1], name)
    images: Any = options.get("images")
    if isinstance(images, list) and any(map(is_url, images)):
        options["images"] = await asyncio.gather(*(_attempt(fetcher, image) for image in images))
    return replace(parsed, options=options, texts=texts)


async def _fetch_field(fetcher: Fetcher, url: str, field: str) -> bytes:
    with in_field(field):
        return await fetcher.fetch(url)


async def _attempt(fetcher: Fetcher, image: Any) -> Any:
    try:
        return await fetcher.fetch(image) if is_url(image) else image
    except FoveaError as error:
        return error
