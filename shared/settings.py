"""Settings of a process: names, types and defaults. The only module that reads the environment.

Every field is the environment variable `FOVEA_<FIELD>`, or one that OpenTelemetry has named. Settings are read once per
process and passed on by value.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.validation_errors import list_errors

RENAMED = {
    "replica_host": "bind", "replica_advertised_host": "advertise", "enabled_services": "services",
    "static_upstreams": "upstreams", "up_api_key": "api_key", "rate_limit_rpm": "rate_per_minute",
    "request_timeout_s": "deadline_s", "body_read_timeout_s": "body_timeout_s", "shutdown_grace_s": "drain_s",
    "allow_image_urls": "fetch_urls", "intra_op_threads": "threads", "max_batch_size": "batch_max",
    "max_batch_delay_ms": "batch_wait_ms", "max_queue_size": "queue_max", "llm_fidelity_sample_rate": "llm_watch",
    "llm_fidelity_min_agreement": "llm_floor", "document_cache_max_bytes": "document_blocks_bytes",
    "job_max_attempts": "job_attempts", "job_dead_letter_max": "job_dead_max",
    "job_inline_max_bytes": "job_inline_bytes",
}  # fmt: skip
"""Field → its old name, which works in the environment for one more release."""

_PORT = r"0*([1-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
_ADDRESS = rf"([^@/?#:,\[\]]+|\[[^]]*\])(:{_PORT})?"
_REDIS_URL = rf"unix://.*|rediss?(\+sentinel)?://([^/?#]*@)?({_ADDRESS}(,{_ADDRESS})*)?([/?].*)?"
_UPSTREAM = r"[^=,|\s]+=https?://[^,|\s]+(\|(grpc://)?[^,|\s]+)?"


class Settings(BaseSettings):
    """Everything that differs between a laptop, a container and a cluster."""

    model_config = SettingsConfigDict(
        extra="forbid", env_prefix="FOVEA_", env_ignore_empty=True, frozen=True, populate_by_name=True,
        use_attribute_docstrings=True, allow_inf_nan=False)  # fmt: skip

    # Where we listen.
    host: str = Field("127.0.0.1", description="Address the gateway binds to; loopback unless told otherwise.")
    http_port: int = Field(8080, ge=0, le=65535, description="Gateway REST and console.")
    grpc_port: int = Field(8081, ge=0, le=65535, description="Gateway gRPC (Open Inference v2).")
    replica_host: str = Field("127.0.0.1", description="Address on which replicas listen.")
    replica_advertised_host: str | None = None
    """Address under which replicas are reached; unset, `replica_host`."""
    metrics_port: int = Field(0, ge=0, le=65535)
    """Port for `/metrics` alone, without a key, on `host` or `replica_host`, for a Prometheus that the network lets in;
    0 opens none."""
    replica_secret: SecretStr | None = None
    """Secret by which replicas know their gateway; `fovea up` makes one per run. Several, separated by commas, are
    accepted; the gateway sends the first, so that they can be rotated."""

    # Foundations.
    redis_url: str | None = None
    """Redis to use: `redis://`, with TLS `rediss://`, or through Sentinel `redis+sentinel://host:port,…/master`; unset,
    `fovea up` starts one of its own."""
    redis_url_file: Path | None = Field(None, description="File that holds `redis_url`, as Secrets are mounted.")
    redis_password: SecretStr | None = Field(None, description="Password of Redis, where the URL holds none.")
    redis_password_file: Path | None = Field(None, description="File that holds `redis_password`.")
    redis_ca_file: Path | None = None
    """Certificates of the authority that signed those of Redis, for `rediss://`; unset, the system's."""
    redis_cert_file: Path | None = Field(None, description="Our own certificate, where Redis asks for one.")
    redis_key_file: Path | None = Field(None, description="The key of `redis_cert_file`.")
    redis_max_bytes: int = Field(2 * 2**30, ge=0)
    """Most memory of the Redis that `fovea up` starts; a full one refuses new jobs. 0 sets no limit."""
    data_dir: Path = Path(".fovea")
    """State of this machine: Redis files, job payloads, caches, logs."""
    object_store: str | None = Field(None, pattern=r"^[a-z0-9]+://")
    """Object store of what users made: `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///folder`; unset, the data
    folder. Credentials come from the cloud's usual variables (`AWS_ACCESS_KEY_ID` …)."""
    enabled_services: str = ""
    """Comma-separated services to start; empty means all that have a model."""
    on_demand_services: str = ""
    """Comma-separated services that may have no replica until a request or a job comes (in the chart: `replicas.min:
    0`); the gateway holds requests until one answers. Needs Redis."""
    static_upstreams: str = Field("", pattern=rf"^\s*({_UPSTREAM}\s*,\s*)*({_UPSTREAM}\s*)?$")
    """Fixed upstreams, `service=http://host:port[|grpc://host:port]`, comma-separated; they win over replicas that
    announce themselves (a Kubernetes Service, a Triton server)."""

    # Callers.
    auth: Literal["insecure-local", "keys"] = Field("insecure-local", description="`keys` demands an API key.")
    keys_file: Path | None = Field(None, description="JSON file of hashed API keys; default `<data_dir>/keys.json`.")
    oidc_issuer: str | None = None
    """Issuer whose bearer tokens are taken besides API keys under `auth=keys`; its exact URL."""
    oidc_audience: str = Field("fovea", description="Audience that a token must be meant for.")
    oidc_tenant_claim: str = Field("tenant", description="Claim of a token that names the tenant.")
    oidc_scope_claim: str = "scope"
    """Claim with the scopes, a list or a text with spaces: `infer` or `fovea:infer` and so on."""
    oidc_client_id: str | None = None
    """Public client of the issuer (authorisation code with PKCE) for the console's sign-in button; register
    `https://HOST/console/sign-in` as its redirect URI. Unset shows no button."""
    oidc_login_scope: str = Field("openid", description="Scopes that the console asks the issuer for.")
    up_api_key: SecretStr | None = Field(None, description="Key with which `fovea up` sends its first requests.")
    rate_limit_rpm: int = Field(600, ge=1, description="Requests per minute and tenant unless the key says otherwise.")

    # How much we take.
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body.")
    max_pixels: int = Field(64_000_000, ge=1, description="Largest picture, from its header, before decoding.")
    max_side: int = Field(16_384, ge=1, description="Longest side of a picture, pixels, whatever the model.")
    picture_memory_bytes: int = Field(2**30, ge=2**20)
    """Memory that pictures in work may take in one replica, estimated before decoding; what needs more is refused."""
    replica_memory_bytes: int | None = Field(None, ge=0)
    """Memory at which a replica or worker ends itself rather than its neighbours; what it was doing is not tried again.
    Unset, 80 % of what the machine or container has; 0 never."""
    max_images: int = Field(16, ge=1, description="Most pictures in one request.")
    weights_licences: str = ""
    """Comma-separated SPDX expressions of weights that may be served; empty allows all."""
    refuse_non_finite: bool = False
    """Refuse tensors (Open Inference) that hold NaN or infinite values."""
    allow_image_urls: bool = False
    """Fetch pictures that requests name by URL, from public addresses only."""
    body_read_timeout_s: float = Field(30, gt=0, description="Longest pause between two reads of a request body.")
    request_timeout_s: float = Field(120, gt=0)
    """Deadline of an answer that comes whole; of a stream, to its first piece and between two."""
    stream_timeout_s: float = Field(0, ge=0)
    """Longest that a stream may take as a whole, however lively; 0 sets no limit."""
    shutdown_grace_s: float = Field(10, gt=0, description="How long a stopping process finishes what it has begun.")

    # How we run models.
    engine: Literal["auto", "torch", "onnx", "tensorrt", "triton"] = "auto"
    """Engine of vision models."""
    graphs_dir: Path | None = None
    """Folder of ONNX graphs that `fovea export graphs` wrote: served as they are, without torch. Unset, `graphs` in the
    environment's folder, where `make run` puts them."""
    vision_precision: Literal["fp32", "fp16"] = "fp32"
    """Arithmetic of vision models on a GPU, with the engines `onnx` and `tensorrt`."""
    triton_url: str | None = Field(None, description="host:port of an Open Inference v2 server for `engine=triton`.")
    triton_timeout_s: float = Field(60, gt=0, description="Seconds after which a call to `triton_url` is given up.")
    triton_connections: int = Field(8, ge=1, description="Calls to `triton_url` at once, per model.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="cpu, cuda, cuda:0 … or auto.")
    intra_op_threads: int = Field(0, ge=0, le=1024, description="Intra-op threads of one model; 0 means all cores.")
    max_batch_size: int = Field(8, ge=1, description="Largest micro-batch.")
    preload: str = "all"
    """Models that are loaded at start: `all`, `default` (the first of each service), names, with commas between. Others
    are loaded by their first request, where their kind allows it; `fovea up` sets `default`."""
    model_memory_bytes: int = Field(0, ge=0)
    """Memory of a replica above which models that a request has loaded are unloaded again, the longest unused first; 0
    keeps all."""
    replicas: int = Field(1, ge=1, description="Replicas of each service that `fovea up` places.")
    placement: Literal["processes", "ray"] = "processes"
    """Supervisor of the replicas of `fovea up`: `processes` forks them from one process, which takes less memory and
    time; `ray` starts Ray Serve, as a cluster does."""
    max_batch_delay_ms: float = Field(2.0, ge=0, description="Longest wait for a micro-batch to fill; 0 never waits.")
    max_queue_size: int = Field(64, ge=1, description="Requests that may wait per model before 429.")
    llm_dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of language models that interpretability looks into."""
    llm_tensor_parallel: Literal[1, 2, 4, 8] = 1
    """Processes, each with a GPU of its own, that hold the served language model together."""
    llm_weights: Literal["auto", "bf16", "fp8", "q8", "q4", "fp32"] = "auto"
    """Format of a served language model's weights; auto: the file's own, as far as this machine has it."""
    llm_kv_cache_dtype: Literal["auto", "q8", "q4", "r4", "r3"] = "auto"
    """Older keys and values of language models in 8, 4 or 3 bits; auto: the model's own type."""
    llm_request_templates: bool = False
    """Take chat templates from requests (`chat_template`). They run in a sandbox, but may run for long."""
    llm_adapters: Path | None = None
    """Folder of LoRA adapters (one folder each, as peft saves them), which all tenants may use by name."""
    llm_model: str = Field("smollm2", description="Default chat model: a served name, an HF folder or a GGUF file.")
    llm_fidelity_sample_rate: float = Field(0.01, ge=0, le=1)
    """Share of answers under an attention method that is run again densely, off-peak."""
    llm_fidelity_min_agreement: float = Field(0.5, ge=0, le=1)
    """Median agreement with dense attention below which a method with its knobs is held back; 0 never."""
    judge_base_url: str = "http://127.0.0.1:8080"
    """OpenAI-compatible endpoint that judges ask; by default our own gateway."""
    judge_api_key: SecretStr | None = Field(None, description="Key that judges send to it.")

    # State of models between requests.
    session_key: SecretStr | None = None
    """Master key under which sessions and documents are sealed; unset, `<data_dir>/session.key`. Replicas that do not
    share a data folder need the same one."""
    prefix_cache_shared: bool = False
    """Share cached prompts between tenants: faster for common prompts, but a tenant can find out by the time and by
    `cached_tokens` what another has sent."""
    service_version: str = Field("", pattern=r"^([a-z0-9][a-z0-9.-]{0,31})?$")
    """Version of the service that this process serves, next to others; empty is the stable one."""
    load_balancing: Literal["affinity", "least-loaded"] = "affinity"
    """How the gateway picks a replica where replicas remember: `affinity` sends what continues a session, a document or
    a prompt to the replica that has it, unless that one is busier than the others."""
    session_ttl_s: int = Field(7 * 24 * 3600, ge=1, description="How long unused sessions and documents are kept.")
    session_quota_bytes: int = Field(256 * 2**20, ge=0)
    """Most bytes that the sessions of one tenant hold before 429 for new ones."""
    document_quota_bytes: int = Field(256 * 2**20, ge=0)
    """Most bytes that the documents of one tenant hold before 429 for new ones."""
    document_cache_max_bytes: int = Field(64 * 2**20, ge=0)
    """Most bytes that Redis keeps per tenant of what models made of documents, so that no other replica reads them
    again; the longest unused go first. 0 keeps nothing."""

    # Jobs.
    job_ttl_s: int = Field(24 * 3600, ge=1, description="How long a finished job and its result are kept.")
    job_cancelled_ttl_s: int = Field(900, ge=1)
    """How long a cancelled job is kept, with its request, for a retry."""
    job_quota_bytes: int = Field(2**30, ge=0)
    """Most bytes that the jobs of one tenant hold, requests and answers, before 429."""
    file_quota_bytes: int = Field(2**30, ge=0)
    """Most bytes that the files of one tenant hold (`/v1/files`) before 429 for uploads and batches."""
    job_lease_s: float = Field(4.0, gt=0, description="A silent worker loses its job after this long.")
    job_max_attempts: int = Field(3, ge=1, description="Deliveries before a job becomes a dead letter.")
    jobs_in_replica: bool = False
    """Whether each replica runs the jobs of its service, so that they need no second copy of the models; `fovea up` and
    Compose do so. Otherwise start workers (`python -m shared.serving.worker SERVICE`), which send them to the
    replicas."""
    job_concurrency: int = Field(2, ge=1, description="Jobs that one worker runs at a time.")
    job_queue_max: int = Field(1000, ge=1, description="Jobs that may wait per service before 429.")
    job_dead_letter_max: int = Field(1000, ge=1, description="Dead letters kept per tenant; beyond it the oldest go.")
    job_inline_max_bytes: int = Field(1_000_000, ge=0)
    """Payloads above this go to the object store, not to Redis."""

    # Logs, metrics and traces.
    log_level: str = Field(
        "INFO", pattern=r"^(?i:debug|info|warning|error|critical)$", description="DEBUG, INFO, WARNING or ERROR."
    )
    log_format: Literal["json", "console"] = Field("console", description="json in production.")
    otlp_endpoint: str | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    """OpenTelemetry collector that spans are sent to over OTLP/HTTP, such as `http://collector:4318`; unset, nothing is
    traced. The SDK reads its other standard variables by itself (docs/15-observability.md)."""
    otlp_traces_endpoint: str | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    """Full URL for spans, where it is not `/v1/traces` of that collector."""
    otel_sdk_disabled: bool = Field(default=False, validation_alias="OTEL_SDK_DISABLED")
    """Trace nothing, whatever the endpoint."""

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Values under old names, where the new one is not set; each is warned of."""
        found = dict(_old_values())
        for field in found.keys() - {"up_api_key"}:  # FOVEA_API_KEY goes on being the clients' variable
            old, new = _variable(RENAMED[field]), _variable(field)
            message = f"The setting {old} is called {new} now; the old name works for one more release."
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            logging.getLogger(__name__).warning(message)
        return {**found, **given}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Expand `~`, and put password and certificates into Redis's URL, which is all that its clients need."""
        for name, value in self:
            if isinstance(value, Path) or name == "llm_model":  # in an env file no shell has done it
                object.__setattr__(self, name, type(value)(os.path.expanduser(value)))  # noqa: PTH111  # never fails
        if not ((secret := "".join(self.replica_secrets)).isascii() and secret.isprintable()):
            raise ValueError("FOVEA_REPLICA_SECRET is sent in a header, so it must be printable ASCII in one line")
        if 0 < self.redis_max_bytes < 4 * 2**20:
            raise ValueError("FOVEA_REDIS_MAX_BYTES must be 0 or at least 4194304, which Redis needs before any job")
        url = self.redis_url or (self.redis_url_file and self.redis_url_file.read_text("utf-8").strip())
        if self.redis_url_file and not url:
            raise ValueError(f"The file that FOVEA_REDIS_URL_FILE names, {self.redis_url_file}, is empty")
        if not url:
            return self
        if not re.fullmatch(_REDIS_URL, url):
            hint = "a password with other signs than letters and digits goes into FOVEA_REDIS_PASSWORD"
            raise ValueError(f"FOVEA_REDIS_URL must be redis://, rediss:// or redis+sentinel:// and host:port; {hint}")
        password = self.redis_password.get_secret_value() if self.redis_password else None
        if self.redis_password_file and not (password := self.redis_password_file.read_text("utf-8").strip()):
            raise ValueError(f"The file that FOVEA_REDIS_PASSWORD_FILE names, {self.redis_password_file}, is empty")
        files = {"ssl_ca_certs": self.redis_ca_file, "ssl_certfile": self.redis_cert_file}
        files["ssl_keyfile"] = self.redis_key_file
        object.__setattr__(self, "redis_url", _complete_url(url, password, files))
        return self

    @property
    def replica_secrets(self) -> tuple[str, ...]:
        """The secrets that replicas accept; the gateway sends the first."""
        return _split_names(self.replica_secret.get_secret_value() if self.replica_secret else "")

    @property
    def replica_credentials(self) -> dict[str, str]:
        """The header, or gRPC metadata, by which the gateway is known to replicas; empty without a secret."""
        return {"x-fovea-replica-secret": self.replica_secrets[0]} if self.replica_secrets else {}

    @property
    def keys_path(self) -> Path:
        """File of hashed API keys."""
        return self.keys_file or self.data_dir / "keys.json"

    @property
    def audit_path(self) -> Path:
        """File of administrative acts."""
        return self.data_dir / "audit.jsonl"

    @property
    def cache_dir(self) -> Path:
        """Derived artefacts by digest: exported ONNX graphs, dequantised weights. Safe to delete."""
        return self.data_dir / "cache"

    @property
    def object_store_url(self) -> str:
        """URL of the object store; the embedded one is the data folder."""
        return self.object_store or self.data_dir.absolute().as_uri()

    @property
    def weights_dir(self) -> Path:
        """Imported checkpoints, by model name: the object store's own folder, or this machine's copy of them."""
        if self.object_store is None:
            return self.data_dir / "weights"
        parts = urlsplit(self.object_store)
        return Path(unquote(parts.path)) / "weights" if parts.scheme == "file" else self.cache_dir / "weights"

    @property
    def traces_endpoint(self) -> str | None:
        """Full URL that spans are sent to; None where nothing is traced."""
        if self.otel_sdk_disabled:
            return None
        base = self.otlp_endpoint
        return self.otlp_traces_endpoint or (f"{base.rstrip('/')}/v1/traces" if base else None)

    @property
    def upstream_addresses(self) -> dict[str, tuple[str, str | None]]:
        """Service name → (HTTP base URL, gRPC target or None), parsed from `static_upstreams`."""
        found: dict[str, tuple[str, str | None]] = {}
        for part in filter(None, (p.strip() for p in self.static_upstreams.split(","))):
            service, _, urls = part.partition("=")
            http, _, grpc = urls.partition("|")
            found[service.strip()] = (http.strip().rstrip("/"), grpc.removeprefix("grpc://").strip() or None)
        return found

    @property
    def enabled_service_names(self) -> tuple[str, ...]:
        """Services named by the user, in the user's order; empty means all."""
        return _split_names(self.enabled_services)

    @property
    def on_demand_service_names(self) -> tuple[str, ...]:
        """Services that may have no replica until somebody asks."""
        return _split_names(self.on_demand_services)


def _split_names(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


@cache
def settings() -> Settings:
    """The settings of this process, read once; it ends with a sentence where one of them is wrong."""
    _warn_of_typos()
    try:
        return Settings()
    except OSError as error:
        problem = f"A file that they name can't be read: {error}."
    except ValidationError as error:
        first = list_errors(error)[0]
        field = "".join(map(str, first["loc"][:1]))
        known = Settings.model_fields.get(field)
        msg = "It has another form" if first["type"] == "string_pattern_mismatch" else first["msg"]
        problem = f"{_variable(field) if known else field}: {msg}. {known.description if known else ''}"
    problem = " ".join(problem.replace("Value error, ", "").removeprefix(": ").split())
    sys.stderr.write(f"The settings can't be used. {problem}\n")
    sys.exit(2)


def _warn_of_typos() -> None:
    """Warn of variables that set nothing and are spelt nearly like a setting."""
    named = {_variable(name): _variable(name) for name in Settings.model_fields}
    named |= {_variable(old): _variable(new) for new, old in RENAMED.items()}
    for name in sorted({name.upper() for name in os.environ} - named.keys()):
        if name.startswith("FOVEA_") and (near := get_close_matches(name, named, n=1, cutoff=0.8)):
            logging.getLogger(__name__).warning("%s is not a setting: did you mean %s?", name, named[near[0]])


def environment(**more: str) -> dict[str, str]:
    """The environment of this process and `more`, for a child process; settings go by their new names."""
    old = {_variable(name) for name in RENAMED.values()}
    ours = {name: value for name, value in os.environ.items() if name.upper() not in old}
    return {**{_variable(field): value for field, value in _old_values()}, **ours, **more}


def _complete_url(url: str, password: str | None, files: Mapping[str, Path | None]) -> str:
    """A Redis URL with a password and, for TLS, with certificates, unless it states its own."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if password and ":" not in login:
        login, at = f"{login}:{quote(password, safe='')}", "@"
    query = dict(parse_qsl(parts.query))
    if parts.scheme.startswith("rediss"):
        query = {**{name: str(file) for name, file in files.items() if file}, **query}
    netloc = f"{login}{at}{host}"  # empty of a socket's file, whose URL Redis takes as it stands
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query, safe="/"))) if netloc else url


def _variable(name: str) -> str:
    return f"FOVEA_{name}".upper()


def _old_values() -> Iterator[tuple[str, str]]:
    """Fields that the environment sets by their old names, and the values."""
    known = {name.upper(): value for name, value in os.environ.items()}
    return ((field, known[_variable(old)]) for field, old in RENAMED.items() if known.get(_variable(old)))


def export(**values: str) -> None:
    """Set variables of libraries that can be told in no other way, for this process and its children."""
    os.environ.update(values)
