"""Names of this machine: what a `Host` header may say where nobody is asked for a key.

A web page can have its own name lead to a loopback address (DNS rebinding); then the name is foreign, and shows it.
Knows header values only.
"""

import ipaddress
from functools import lru_cache


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, can only mean this machine."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def without_port(host: str) -> str:
    """The name or address in a `Host` header; brackets of IPv6 stay."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host
