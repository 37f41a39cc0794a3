"""The only place that reads the environment. Knows names, types and defaults; knows nothing about who uses them.

Every field is the environment variable `FOVEA_<FIELD>`. Settings are read once per process and passed on by value.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings", "environment", "export", "settings"]


class Settings(BaseSettings):
    """Everything that differs between a laptop, a container and a cluster."""

    model_config = SettingsConfigDict(env_prefix="FOVEA_", frozen=True, extra="ignore")

    # Where we listen.
    host: str = Field("127.0.0.1", description="Address the gateway binds to; loopback unless told otherwise.")
    http_port: int = Field(8080, ge=0, le=65535, description="Gateway REST and console.")
    grpc_port: int = Field(8081, ge=0, le=65535, description="Gateway gRPC (Open Inference v2).")
    bind: str = Field("127.0.0.1", description="Address on which replicas listen.")
    advertise: str | None = Field(None, description="Address under which replicas are reached; unset, `bind`.")

    # What we stand on.
    redis_url: str | None = Field(None, description="Redis to use; unset, `fovea up` starts one of its own.")
    data_dir: Path = Field(
        Path(".fovea"), description="State of this machine: Redis files, job payloads, caches, logs."
    )
    services: str = Field("", description="Comma-separated services to start; empty means all that have a model.")
    upstreams: str = Field(
        "",
        description="Fixed upstreams, `service=http://host:port[|grpc://host:port]`, comma-separated; "
        "they win over replicas that announce themselves (a Kubernetes Service, a Triton server).",
    )

    # Who may call.
    auth: Literal["insecure-local", "keys"] = Field("insecure-local", description="`keys` demands an API key.")
    keys_file: Path | None = Field(None, description="JSON file of hashed API keys; default `<data_dir>/keys.json`.")
    api_key: SecretStr | None = Field(None, description="Key with which `fovea up` sends its first requests.")
    rate_per_minute: int = Field(600, ge=1, description="Requests per minute and tenant unless the key says otherwise.")

    # How much we take.
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body.")
    max_pixels: int = Field(64_000_000, ge=1, description="Largest picture, from its header, before decoding.")
    max_images: int = Field(16, ge=1, description="Most pictures in one request.")
    fetch_urls: bool = Field(
        default=False, description="Fetch pictures that requests name by URL, from public addresses only."
    )
    body_timeout_s: float = Field(30, gt=0, description="Longest pause between two reads of a request body.")
    deadline_s: float = Field(120, gt=0, description="Default deadline of a synchronous request.")
    drain_s: float = Field(10, gt=0, description="How long a stopping process finishes what it has begun.")

    # How we run models.
    engine: Literal["auto", "torch", "onnx", "tensorrt", "triton"] = Field(
        "auto", description="Engine of vision models."
    )
    triton_url: str | None = Field(None, description="host:port of an Open Inference v2 server for `engine=triton`.")
    device: str = Field("auto", description="cpu, cuda, cuda:0 … or auto.")
    threads: int = Field(0, ge=0, description="Intra-op threads of one model; 0 means all cores.")
    batch_max: int = Field(8, ge=1, description="Largest micro-batch.")
    replicas: int = Field(1, ge=1, description="Replicas of each service that `fovea up` places.")
    batch_wait_ms: float = Field(2.0, ge=0, description="Longest wait for a micro-batch to fill; 0 never waits.")
    queue_max: int = Field(64, ge=1, description="Requests that may wait per model before 429.")
    llm_dtype: Literal["float32", "bfloat16"] = Field("float32", description="Compute type of language models.")
    llm_model: str = Field("smollm2", description="Default chat model: a served name, an HF folder or a GGUF file.")

    llm_watch: float = Field(
        0.01, ge=0, le=1, description="Share of answers under an attention method that is run again densely, off-peak."
    )
    llm_floor: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Median agreement with dense attention below which a method with its knobs is held back; 0 never.",
    )

    judge_base_url: str = Field(
        "http://127.0.0.1:8080", description="OpenAI-compatible endpoint that judges ask; by default our own gateway."
    )
    judge_api_key: SecretStr | None = Field(None, description="Key that judges send to it.")

    # What models remember between requests.
    session_key: SecretStr | None = Field(
        None,
        description="Master key under which sessions and documents are sealed; unset, `<data_dir>/session.key`. "
        "Replicas that do not share a data folder need the same one.",
    )
    session_ttl_s: int = Field(7 * 24 * 3600, ge=1, description="How long unused sessions and documents are kept.")
    document_blocks_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Most bytes that Redis keeps per tenant of what models made of documents, so "
        "that no other replica reads them again; the longest unused go first. 0 keeps nothing.",
    )

    # Jobs.
    job_ttl_s: int = Field(24 * 3600, ge=1, description="How long a finished job and its result are kept.")
    job_lease_s: float = Field(4.0, gt=0, description="A silent worker loses its job after this long.")
    job_attempts: int = Field(3, ge=1, description="Deliveries before a job becomes a dead letter.")
    job_concurrency: int = Field(2, ge=1, description="Jobs that one worker runs at a time.")
    job_queue_max: int = Field(1000, ge=1, description="Jobs that may wait per service before 429.")
    job_dead_max: int = Field(1000, ge=1, description="Dead letters kept per tenant; beyond it the oldest go.")
    job_inline_bytes: int = Field(
        1_000_000, ge=0, description="Payloads above this go to the blob store, not to Redis."
    )

    # What we tell.
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: Literal["json", "console"] = Field("console", description="json in production.")

    @property
    def keys_path(self) -> Path:
        """File of hashed API keys."""
        return self.keys_file or self.data_dir / "keys.json"

    @property
    def cache_dir(self) -> Path:
        """Derived artefacts by digest: exported ONNX graphs, dequantised weights. Safe to delete."""
        return self.data_dir / "cache"

    @property
    def weights_dir(self) -> Path:
        """Imported checkpoints, by model name; they win over the weights that came with the package."""
        return self.data_dir / "weights"

    @property
    def fixed_upstreams(self) -> dict[str, tuple[str, str | None]]:
        """Service name → (HTTP base URL, gRPC target or None), parsed from `upstreams`."""
        found: dict[str, tuple[str, str | None]] = {}
        for part in filter(None, (p.strip() for p in self.upstreams.split(","))):
            service, _, urls = part.partition("=")
            http, _, grpc = urls.partition("|")
            found[service.strip()] = (http.strip().rstrip("/"), grpc.removeprefix("grpc://").strip() or None)
        return found

    @property
    def wanted_services(self) -> tuple[str, ...]:
        """Services named by the user, in the user's order; empty means all."""
        return tuple(s.strip() for s in self.services.split(",") if s.strip())


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()


def environment(**more: str) -> dict[str, str]:
    """The environment of this process and `more`, for a child process."""
    return {**os.environ, **more}


def export(**values: str) -> None:
    """Set variables of libraries that can be told in no other way, for this process and its children."""
    os.environ.update(values)
