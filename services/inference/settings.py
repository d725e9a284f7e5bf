"""Settings of the inference service, read from environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, HttpUrl, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ifed.server.startup import check_networks


class Settings(BaseSettings):
    """One attribute per environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    aggregator_url: HttpUrl | None = Field(
        None, description="URL of the aggregator that adapters are read from; set this or ADAPTER_FOLDER"
    )
    reader_token: SecretStr | None = Field(None, description="the service's own bearer token for the aggregator, of role reader")
    reader_token_file: Path | None = Field(None, description="file that contains the token, instead of READER_TOKEN")
    ca_file: Path | None = Field(
        None,
        description="certificates in PEM format that HTTPS to the aggregator trusts instead of the usual authorities; SSL_CERT_FILE works too",
    )
    proxy_url: SecretStr | None = Field(
        None, description="proxy for calls to the aggregator; by default that of HTTPS_PROXY and its siblings, and none on loopback"
    )
    adapter_folder: Path | None = Field(
        None,
        description="existing folder of adapters that `ifed export --adapter` wrote, for a service without an aggregator",
    )
    tasks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="tasks whose adapters are fetched at the start, comma-separated; others on first use; all of a folder when not set",
    )
    default_task: str | None = Field(
        None, description="task of requests that name none (`POST /predict`); the only one of TASKS by default"
    )
    refresh_wait: float = Field(25.0, ge=1, le=300, description="seconds of a long poll for a newer adapter")
    max_followed: int = Field(128, ge=0, description="tasks that are followed by a long poll each; others are refreshed when used")
    lookups_per_minute: int = Field(
        120, ge=1, description="tasks and versions not in the cache that one caller may name in a minute; more are refused with 429"
    )
    adapter_bytes: int = Field(
        512 * 2**20, ge=0, description="size of the adapter cache; beyond it the least recently used adapters are evicted"
    )
    demonstrations_folder: Path | None = Field(
        None,
        description="existing folder with `<task>.jsonl` of labelled texts for few-shot prompting; they never leave the service",
    )

    key_file: Path | None = Field(None, description="file with a name and a key on each line; callers need one of the keys")
    open_access: bool = Field(False, description="let every caller in without a token")
    token_remember_seconds: float = Field(
        60.0, ge=0, description="seconds for which the aggregator's answer about a caller's token is cached"
    )
    token_grace_seconds: float = Field(
        3600.0, ge=0, description="seconds for which a known caller is let in while the aggregator is unreachable"
    )

    failed_attempts_per_minute: int = Field(
        20,
        ge=1,
        description="wrong tokens that an address may send in a minute; then tokens that were not seen before are not checked",
    )
    trusted_proxies: str = Field(
        "",
        description="addresses or networks of proxies, comma-separated, whose X-Forwarded-For names the caller; without them the connection does",
    )

    model: str = Field(min_length=1, description="catalogue name, Hugging Face id or folder of the language model")
    model_cache: Path | None = Field(None, description="folder of downloaded and converted models; in the user's cache by default")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="auto takes bfloat16 where it is fast")
    threads: Annotated[int | None, Field(ge=1)] = Field(None, description="CPU threads; all cores by default")
    lanes: Annotated[int | None, Field(ge=1, le=64)] = Field(
        None,
        description="replicas of the model that run forward passes at the same time and share THREADS; by default one per thread on a CPU, at most 4",
    )
    prefix_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="size of the cache of prompt prefixes, kept between requests; beyond it the cache is cleared; 0 turns it off, and tasks "
        "then share no text",
    )
    compiled: bool = Field(False, description="compile parts of the model before the service is ready; needs a C++ compiler")
    int8: bool = Field(False, description="quantise the layers' weights to int8 with torchao; scores change slightly")

    token_budget: Annotated[int | None, Field(ge=16)] = Field(
        None, description="tokens of one forward pass, padding included; bounds the memory; chosen for the device by default"
    )
    gather_seconds: float = Field(
        0.002, ge=0, le=1, description="seconds that the oldest waiting request waits for others to share its batch"
    )
    max_queue: int = Field(
        1024, ge=1, description="texts that may wait, each counted once for every task it is asked of; more are refused with 429"
    )
    max_items: int = Field(512, ge=1, description="texts in one request, each counted once for every task")
    max_request_tokens: int = Field(
        131_072, ge=1, description="tokens of all texts in one request, each counted once for every task"
    )
    max_text_tokens: Annotated[int | None, Field(ge=16)] = Field(
        None,
        description="tokens of a text with its template; a longer text is truncated in its middle; 1024, or what the model takes, by default",
    )
    max_body_bytes: int = Field(4_000_000, ge=1000, description="size of a request body in bytes")

    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="port that serves /metrics, instead of PORT, for a network that callers do not reach"
    )
    docs: bool = Field(True, description="serve /docs, /redoc and /openapi.json, which describe every route to anybody")
    body_seconds: float = Field(60.0, gt=0, description="seconds that a request body may take to arrive")
    max_connections: int = Field(
        4096,
        ge=16,
        description="open connections, fewer where the process may open fewer files; beyond them the oldest idle one is closed",
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8081, ge=0, le=65535, description="port to listen on")
    drain_seconds: int = Field(30, ge=0, description="seconds in which a stopping service finishes its requests")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level of log record shown")

    @model_validator(mode="before")
    @classmethod
    def _split_tasks(cls, values: dict[str, Any]) -> dict[str, Any]:
        if isinstance(tasks := values.get("tasks"), str):
            values["tasks"] = tuple(name.strip() for name in tasks.split(",") if name.strip())
        return values

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: str) -> str:
        return check_networks(networks)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if (self.aggregator_url is None) == (self.adapter_folder is None):
            raise ValueError(
                "neither AGGREGATOR_URL nor ADAPTER_FOLDER is set; set the one that adapters are read from"
                if self.aggregator_url is None
                else "AGGREGATOR_URL and ADAPTER_FOLDER are both set; unset AGGREGATOR_URL to serve the folder, or ADAPTER_FOLDER to "
                "serve from the aggregator"
            )
        if self.aggregator_url is not None and (self.reader_token is None) == (self.reader_token_file is None):
            raise ValueError(
                "AGGREGATOR_URL needs a token: set READER_TOKEN or READER_TOKEN_FILE"
                if self.reader_token is None
                else "READER_TOKEN and READER_TOKEN_FILE are both set; unset one of them"
            )
        if self.open_access and self.key_file is not None:
            raise ValueError(
                "OPEN_ACCESS and KEY_FILE are both set; unset OPEN_ACCESS to ask for a key, or KEY_FILE to let everyone in"
            )
        if self.adapter_folder is not None and not self.open_access and self.key_file is None:
            raise ValueError("without an aggregator to check tokens, set KEY_FILE, or OPEN_ACCESS=true to let everyone ask")
        return self

    @property
    def fallback_task(self) -> str | None:
        """The task of requests that name none: DEFAULT_TASK, or the only one of TASKS."""
        return self.default_task or (self.tasks[0] if len(self.tasks) == 1 else None)

    def check_folders(self) -> None:
        """Check that the folders exist.

        Raises:
            NotADirectoryError: one does not exist or is not a folder.
        """
        for name in ("adapter_folder", "demonstrations_folder"):
            folder: Path | None = getattr(self, name)
            if folder is not None and not folder.is_dir():
                raise NotADirectoryError(f"{name.upper()}={folder} is not a folder")

    def proxy(self) -> str | None:
        """Return the URL of the proxy to the aggregator; None for that of the environment."""
        return None if self.proxy_url is None else self.proxy_url.get_secret_value()

    def token(self) -> str | None:
        """Return the bearer token from the variable or its file; None without an aggregator."""
        if self.reader_token is not None:
            return self.reader_token.get_secret_value()
        return None if self.reader_token_file is None else self.reader_token_file.read_text().strip()
