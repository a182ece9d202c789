"""Every setting of the service, typed, in one place.

A field `name` is the environment variable `DETRIGGER_NAME`; the flags of `detrigger serve` bear the same
names. Nothing else in the service reads the environment.
"""

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from detrigger.models.errors import BadInput
from detrigger.service import environment

MIN_TOKEN_LENGTH = 32

Device = Literal["auto", "cpu", "cuda"]
Policy = Literal["purify", "reject", "shadow"]
Profile = Literal["fast", "standard", "thorough"]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Pause = Annotated[float, Field(ge=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Defaults are for one process on one host or GPU; see docs/operations.md for what to change when."""

    model_config = SettingsConfigDict(
        env_prefix="DETRIGGER_", extra="ignore", frozen=True, env_ignore_empty=True
    )

    # What is served, and where.
    store: Path = Field(description="version store written by `detrigger protect`")
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 only on purpose")
    port: int = Field(default=8000, ge=0, le=65_535, description="port to listen on; 0 picks a free one")
    forwarded_from: str = Field(
        default="",
        description="addresses and networks of proxies, with commas between, whose X-Forwarded-For is believed",
    )
    cors_origins: str = Field(
        default="",
        description="origins of web pages that may read answers, with commas between; * for all, never for /admin",
    )
    device: Device = Field(
        default="auto", description="cuda fails to start without CUDA; auto falls back visibly"
    )
    policy: Policy = Field(
        default="purify",
        description="purify answers from the purified image; reject refuses flagged ones; shadow records",
    )
    response_detail: Literal["full", "label"] = Field(
        default="full",
        description="label withholds scores, so that answers are a poorer oracle for strangers",
    )

    # Engine and batching.
    threads: int = Field(default=0, ge=0, description="engine threads; 0 takes CPU affinity and cgroup quota")
    batch_size: Count = Field(default=32, le=1024, description="most images in one run of the engine")
    engine_slots: int = Field(
        default=1,
        ge=1,
        le=8,
        description="runs of the engine side by side; more share its threads, which was slower on the CPU",
    )
    cuda_graphs: bool = Field(
        default=False, description="replay runs on CUDA as CUDA graphs; has never run on a GPU yet"
    )
    queue_images: Count = Field(default=256, description="images that may wait; more are answered 429")
    decode_threads: int = Field(default=0, ge=0, description="image decoding threads; 0 takes one per core")

    # What a request may cost.
    deadline: Seconds = Field(default=10.0, description="seconds from request headers to answer, else 504")
    body_timeout: Seconds = Field(default=10.0, description="seconds for the body to arrive, else 408")
    max_body_bytes: Count = Field(default=10 * 2**20, description="larger bodies are answered 413")
    max_buffered_bytes: Count = Field(default=256 * 2**20, description="bodies held at once, else 429")
    max_images: int = Field(default=32, ge=1, le=1024, description="images in one request, else 422")
    max_pixels: Count = Field(default=2**24, description="width x height of one image, else 422")
    max_side: Count = Field(default=8192, description="width and height of one image, else 422")
    max_request_pixels: Count = Field(
        default=2**25, description="pixels of all images of a request, else 422"
    )
    max_decoding_pixels: Count = Field(
        default=2**24, description="pixels of images above 1 megapixel being decoded at a time; others wait"
    )

    # What a connection may cost.
    max_connections: Count = Field(
        default=2048, description="open at once; the longest idle one then makes room, else 503"
    )
    max_head_bytes: int = Field(
        default=2**16, ge=1024, le=2**20, description="bytes of request line and headers, else 431"
    )
    max_headers: int = Field(default=100, ge=8, le=10_000, description="headers of a request, else 431")
    head_timeout: Seconds = Field(
        default=10.0, description="seconds for request line and headers from their first byte, else 408"
    )

    # Life cycle.
    poll_interval: Seconds = Field(default=1.0, description="seconds between looks at the promotion log")
    verify_interval: Seconds = Field(
        default=3600.0,
        description="seconds between looks at the digests of what is served; SIGHUP looks at once",
    )
    keep_alive: Seconds = Field(default=75.0, description="seconds an idle connection stays open")
    drain_delay: Pause = Field(default=5.0, description="seconds not ready but answering after SIGTERM")
    drain_timeout: Seconds = Field(
        default=30.0, description="seconds for requests in flight to end after that"
    )
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = Field(default=False, description="one line per request, not only per failed one")

    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+",
        description="OpenTelemetry collector's URL for traces over HTTP, such as http://127.0.0.1:4318/v1/traces",
    )

    # Administration. Without a token there is no /admin.
    admin_token: SecretStr | None = Field(
        default=None, description="bearer token of /admin, 32 characters or more"
    )
    admin_token_file: Path | None = Field(
        default=None, description="file with one token a line, two at most (old and new while rotating)"
    )
    review_token: SecretStr | None = Field(
        default=None, description="token that may read /admin and /console and review images, nothing else"
    )
    review_token_file: Path | None = Field(
        default=None, description="file with that token, as admin_token_file"
    )
    admin_host: str = Field(default="127.0.0.1", description="address for /admin, where admin_port is set")
    admin_port: int | None = Field(
        default=None, ge=1, le=65_535, description="serve /admin and /console on this port and on no other"
    )
    retrain_data: Path | None = Field(default=None, description="clean images that /admin/retrain uses")
    retrain_device: Device = "auto"
    retrain_profile: Profile = "standard"
    retrain_nice: int = Field(
        default=10, ge=0, le=19, description="how far a retrain job steps back for the service"
    )
    retrain_stall: Seconds = Field(
        default=1800.0, description="seconds without a word from a retrain job after which it is ended"
    )
    retrain_keep_jobs: Count = Field(default=50, description="finished job records kept in the store")

    # What is kept of requests. Nothing, unless a folder or file is named.
    quarantine: Path | None = Field(
        default=None, description="folder that keeps flagged images for review; unset keeps none"
    )
    quarantine_max_bytes: Count = Field(default=2**30, description="bytes on disk that it may take")
    quarantine_max_images: Count = Field(default=10_000, description="images that it may hold")
    quarantine_max_days: Annotated[float, Field(gt=0, le=3650)] = Field(
        default=30, description="days after which an image is erased"
    )
    quarantine_sample: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.001, description="share of images that are NOT flagged and are kept as well, to see misses"
    )
    quarantine_rate: Annotated[float, Field(gt=0, le=10_000)] = Field(
        default=20, description="most images written a second; more are counted, not kept"
    )
    decision_log: Path | None = Field(
        default=None, description="file for one JSON line per answer, without pixels; unset writes none"
    )
    decision_log_bytes: Count = Field(default=64 * 2**20, description="size at which it is rotated")
    decision_log_files: Count = Field(default=5, description="rotated files that are kept")
    signing_key: Path | None = Field(
        default=None, description="private key (PEM) that retrain jobs sign their versions with"
    )
    require_signature: Path | None = Field(
        default=None, description="public key (PEM); versions without its valid signature are not served"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        environment.check_names(cls.model_fields, os.environ)
        return {
            name: value
            for name, value in values.items()
            if not environment.of_kubernetes(name, value, os.environ)
        }

    @field_validator("forwarded_from")
    @classmethod
    def _networks(cls, text: str) -> str:
        for part in filter(None, map(str.strip, text.split(","))):
            ip_network(part)  # its own error says what is wrong
        return text

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, text: str) -> str:
        for part in filter(None, map(str.strip, text.split(","))):
            if part != "*" and not re.fullmatch(r"https?://[^/\s]+", part):
                raise ValueError(f"{part!r} is no origin; write https://example.org, without a path, or *")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.admin_token is not None and self.admin_token_file is not None:
            raise ValueError("set admin_token or admin_token_file, not both")
        if self.review_token is not None and self.review_token_file is not None:
            raise ValueError("set review_token or review_token_file, not both")
        if self.max_images > self.queue_images:
            raise ValueError(
                f"queue_images ({self.queue_images}) must hold a request of max_images ({self.max_images})"
            )
        return self

    def origins(self) -> tuple[str, ...]:
        """The origins of `cors_origins`."""
        return tuple(filter(None, map(str.strip, self.cors_origins.split(","))))

    def tokens(self) -> tuple[bytes, ...]:
        """The accepted admin tokens: none (no /admin), one, or two while rotating.

        Raises:
            BadInput: the token file cannot be read, or a token is too short.
        """
        return _tokens(self.admin_token, self.admin_token_file, "admin_token")

    def review_tokens(self) -> tuple[bytes, ...]:
        """The accepted tokens that read and review: none, one, or two while rotating.

        Raises:
            BadInput: as `tokens`, or one is set without an admin token.
        """
        found = _tokens(self.review_token, self.review_token_file, "review_token")
        if found and not self.tokens():
            raise BadInput("review_token is set without admin_token; set both, or none for no /admin at all")
        return found

    def redacted(self) -> dict[str, str]:
        """Every setting as text for the log; secrets are stars (pydantic's SecretStr)."""
        return {name: str(getattr(self, name)) for name in type(self).model_fields}


def _tokens(secret: SecretStr | None, file: Path | None, name: str) -> tuple[bytes, ...]:
    if secret is not None:
        lines = [secret.get_secret_value().strip()]
    elif file is not None:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{name}_file cannot be read: {error}; name a readable text file") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        return ()
    kind = name.replace("_", " ")
    if not 1 <= len(lines) <= 2:
        raise BadInput(f"the {kind} file holds {len(lines)} tokens; it must hold one, or two while rotating")
    short = min(len(line) for line in lines)
    if short < MIN_TOKEN_LENGTH:
        raise BadInput(
            f"the {kind} has {short} characters, at least {MIN_TOKEN_LENGTH} are needed; "
            "make one with `openssl rand -hex 32`"
        )
    return tuple(line.encode() for line in lines)
