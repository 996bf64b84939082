"""The settings of a deployment: one frozen model, and the only reader of the environment.

Every variable is ``ADE_<FIELD>``. The unit stands last in a name. ``docs/reference/settings.md`` lists them all.
"""

import os
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.work.installer import installer_environment
from service.work.manifest import MAX_ATTEMPTS
from service.work.masking import Mask, patterns_of

SECRET_PREFIX = "ADE_SECRET_"  # noqa: S105 - the name of variables, not a secret


class Settings(BaseSettings):
    """What an operator decides. The reason for each default stands beside it."""

    model_config = SettingsConfigDict(env_prefix="ADE_", frozen=True, extra="ignore")

    database_url: str | None = Field(None, description="PostgreSQL to use; without it the bundled server is started.")
    data_dir: Path = Field(Path("data"), description="Everything that this deployment keeps on disk.")
    venvs_dir: Path | None = Field(None, description="Where builds make their venvs; `<data>/venvs` when unset.")
    runs_dir: Path | None = Field(None, description="Log files and artifacts of runs; `<data>/runs` when unset.")
    url: str = Field("http://127.0.0.1:8000", description="The service that the command line talks to.")
    api_key: str | None = Field(None, description="The key that the command line shows to the service.")
    host: str = Field("127.0.0.1", description="Where `ade serve` listens; with `ADE_AUTH=off` only loopback.")
    port: int = Field(8000, ge=0, le=65535, description="The port of `ade serve`.")
    api_processes: int = Field(1, ge=1, le=64, description="API processes of `ade serve`, on one port.")
    auth: Literal["keys", "off"] = Field("off", description="Whether each request needs a key.")
    rate_requests_per_second: float = Field(100, gt=0, description="Requests of one key, to one API process.")
    rate_burst_requests: int = Field(200, ge=1, description="How many of these may come at once.")
    key_streams: int = Field(1000, ge=1, description="Streams that one key may have open at one API process.")
    cors_origins: str | None = Field(None, description="Origins whose pages may use the API, with commas between.")
    engine_spec: str | None = Field(
        None, description="The engine of configs that name none: a requirement, a wheel or a local folder."
    )
    python_bin: Path | None = Field(
        None, description="The Python that venvs are made of; the service's own when unset."
    )
    safe_mode: bool = Field(False, description="Refuses all new work, whatever was switched through the API.")
    signing_key: Path | None = Field(
        None, description="The Ed25519 key (PEM) that signs heads: `ade log head --signed`."
    )
    mask_patterns: str | None = Field(
        None, description="Regular expressions, one a line or a JSON list: what they match is hidden in all output."
    )
    max_concurrency: int = Field(2, ge=1, le=1000, description="Runs and builds that one worker does at once.")
    run_timeout_seconds: int = Field(300, ge=1, description="A run without a timeout of its own ends after this.")
    build_timeout_seconds: int = Field(600, ge=1, description="A build ends after this.")
    build_step_timeout_seconds: int | None = Field(
        None, ge=1, description="A step of a build ends it after this; when unset only the whole is limited."
    )
    run_max_attempts: int = Field(
        1, ge=1, le=MAX_ATTEMPTS, description="How often a run may be begun, where its worker is lost."
    )
    build_max_attempts: int = Field(
        3, ge=1, le=MAX_ATTEMPTS, description="How often a build may be begun, where its worker is lost."
    )
    lease_seconds: int = Field(30, ge=2, description="A worker that is silent for this long has lost its work.")
    cancel_grace_seconds: float = Field(10, ge=0, description="From SIGTERM to SIGKILL, for an engine that is stopped.")
    drain_seconds: float = Field(20, ge=0, description="How long `ade serve` lets work end when it is asked to stop.")
    worker_cpu_seconds: int | None = Field(None, ge=1, description="CPU time of one engine; no limit when unset.")
    worker_mem_mb: int | None = Field(None, ge=16, description="Address space of one engine; no limit when unset.")
    worker_fsize_mb: int | None = Field(None, ge=1, description="Largest file of one engine; no limit when unset.")
    worker_processes: int = Field(512, ge=1, description="Processes of one engine at a time.")
    worker_disk_mb: int = Field(8192, ge=1, description="What one engine may leave on disk; its inputs do not count.")
    disk_free_min_mb: int = Field(512, ge=0, description="With less free on its disk a worker begins nothing.")
    line_max_bytes: int = Field(16 * 2**20, ge=65536, description="More of one line of output is cut, and counted.")
    log_max_bytes: int = Field(2**30, ge=2**20, description="More output of one run is not kept, and counted.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="How the processes log: for people, as JSON, or for people on a terminal only."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What they log, at the least.")
    metrics_dir: Path | None = Field(
        None, description="Where the processes of one machine find each other's metrics; `ade serve` makes one."
    )
    otlp_endpoint: str | None = Field(None, description="The OTLP/HTTP receiver that spans are sent to.")
    otlp_headers: str | None = Field(None, description="Headers for it, `name=value` with commas between.")
    config_max_bytes: int = Field(64 * 2**20, ge=1024, description="The largest config package that is taken in.")
    document_max_bytes: int = Field(512 * 2**20, ge=1024, description="The largest document that is taken in.")

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, address: str | None) -> str | None:
        if address is not None and not re.match(r"postgres(ql)?://", address):
            raise ValueError("an address begins with postgresql://")
        return address

    @field_validator("otlp_endpoint")
    @classmethod
    def _http(cls, address: str | None) -> str | None:
        if address is not None and not re.match(r"https?://.", address):
            raise ValueError("an address begins with http:// or https://")
        return address

    @field_validator("mask_patterns")
    @classmethod
    def _usable(cls, patterns: str | None) -> str | None:
        Mask(patterns=patterns_of(patterns))
        return patterns

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: str | None) -> str | None:
        for origin in (origins or "").split(","):
            if origin and not re.fullmatch(r"https?://[a-z0-9.:\[\]-]+", origin):
                raise ValueError(f"{origin} is no origin: https://host, or https://host:port, in lower case")
        return origins

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.cancel_grace_seconds * 2 > self.run_timeout_seconds:
            raise ValueError("ADE_CANCEL_GRACE_SECONDS must be less than half of ADE_RUN_TIMEOUT_SECONDS")
        if self.cors_origins and self.auth == "off":
            raise ValueError(
                "ADE_CORS_ORIGINS needs ADE_AUTH=keys: else every visitor of those pages could run code here"
            )
        return self

    @cached_property
    def origins(self) -> frozenset[str]:
        """The foreign origins whose pages may use the API."""
        return frozenset(filter(None, (self.cors_origins or "").split(",")))

    @cached_property
    def data(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.absolute()

    @cached_property
    def venvs(self) -> Path:
        return (self.venvs_dir or self.data / "venvs").absolute()

    @cached_property
    def runs(self) -> Path:
        return (self.runs_dir or self.data / "runs").absolute()

    @cached_property
    def python(self) -> Path:
        """The interpreter that venvs are made of: never one inside a venv, which may vanish with it."""
        return self.python_bin or Path(getattr(sys, "_base_executable", sys.executable))

    @cached_property
    def secrets(self) -> Mapping[str, str]:
        """Secrets by the short name under which an engine gets them."""
        return {
            name.removeprefix(SECRET_PREFIX): value
            for name, value in os.environ.items()
            if name.startswith(SECRET_PREFIX)
        }

    @cached_property
    def unknown(self) -> list[str]:
        """Variables that look like settings and are none: written wrongly, mostly."""
        known = {f"ADE_{name.upper()}" for name in type(self).model_fields}
        return sorted(
            name
            for name in os.environ
            if name.startswith("ADE_") and not name.startswith(SECRET_PREFIX) and name not in known
        )

    @cached_property
    def otlp(self) -> Mapping[str, str]:
        """The headers for the receiver of spans; their values are mostly keys."""
        pairs = (pair.partition("=") for pair in (self.otlp_headers or "").split(",") if pair.strip())
        return {name.strip(): unquote(value.strip()) for name, _, value in pairs}

    @cached_property
    def installer_env(self) -> Mapping[str, str]:
        """The index, proxy and certificate variables: for the installer alone."""
        return installer_environment(os.environ)

    @cached_property
    def child_env(self) -> Mapping[str, str]:
        """What a process of this deployment (API, worker, projector) inherits: everything."""
        return dict(os.environ)
