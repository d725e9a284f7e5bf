"""Everything the environment may tell an inference service. Knows nothing of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, HttpUrl, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """An inference service's settings, from environment variables of the same names in capitals."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    aggregator_url: HttpUrl | None = Field(None, description="where adapters are read; this or ADAPTER_FOLDER")
    reader_token: SecretStr | None = Field(None, description="the service's own bearer token, of role reader, for the aggregator")
    reader_token_file: Path | None = Field(None, description="a file that holds the token, instead of READER_TOKEN")
    adapter_folder: Path | None = Field(
        None,
        description="folder of adapters that `ifed export --adapter` wrote, for a service without an aggregator; must be there",
    )
    tasks: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="tasks to fetch at the start, comma-separated; others on first use; of a folder all when not set"
    )
    default_task: str | None = Field(
        None, description="task of requests that name none (`POST /predict`); the one of TASKS if that is one"
    )
    refresh_wait: float = Field(25.0, ge=1, le=300, description="seconds a question for a newer adapter may be held back")
    max_followed: int = Field(128, ge=0, description="tasks followed by a long poll each; others are asked for again when used")
    adapter_bytes: int = Field(512 * 2**20, ge=0, description="tensors of adapters held; beyond, the least recently used go")
    demonstrations_folder: Path | None = Field(
        None,
        description="folder with `<task>.jsonl` of labelled texts for few-shot prompting, which must be there; they never leave the service",
    )

    key_file: Path | None = Field(None, description="file with a name and a key a line; callers need one of these keys")
    open_access: bool = Field(False, description="let everyone who reaches the service ask, without a token")
    token_remember_seconds: float = Field(60.0, ge=0, description="how long the aggregator's word on a caller's token counts")
    token_grace_seconds: float = Field(
        3600.0, ge=0, description="how long a known caller is let in while the aggregator cannot be reached"
    )

    model: str = Field(min_length=1, description="catalogue name, Hugging Face id or folder of the language model")
    model_cache: Path | None = Field(None, description="folder of downloaded and converted models; in the user's cache by default")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="auto takes bfloat16 where it is fast")
    threads: Annotated[int | None, Field(ge=1)] = Field(None, description="CPU threads; all cores by default")
    lanes: Annotated[int | None, Field(ge=1, le=64)] = Field(
        None, description="forward passes at once, THREADS shared among them; by default a lane a thread on a CPU, 4 at the most"
    )
    prefix_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="what prompts of a task begin with, kept between requests; beyond, all is forgotten; 0 is off",
    )
    compiled: bool = Field(False, description="compile parts of the model before the service is ready; needs a C++ compiler")
    int8: bool = Field(False, description="hold the layers' weights in eight bits, with torchao; a close model, not the same")

    token_budget: Annotated[int | None, Field(ge=16)] = Field(
        None, description="padded tokens in one batch at the most; bounds the memory; what suits the device by default"
    )
    gather_seconds: float = Field(0.002, ge=0, le=1, description="how long a batch waits for more requests")
    max_queue: int = Field(1024, ge=1, description="texts that may wait; more are refused with 429")
    max_items: int = Field(512, ge=1, description="texts in one request at the most")
    max_request_tokens: int = Field(131_072, ge=1, description="tokens of all texts in one request at the most")
    max_text_tokens: Annotated[int | None, Field(ge=16)] = Field(
        None,
        description="tokens of a text with its template; a longer one loses its middle; 1024 by default, or what the model takes",
    )
    max_body_bytes: int = Field(4_000_000, ge=1000, description="size of a request at the most")

    host: str = Field("127.0.0.1", description="address to answer on")
    port: int = Field(8081, ge=0, le=65535, description="port to answer on")
    drain_seconds: int = Field(30, ge=0, description="how long a stopping service lets requests end")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level of log record shown")

    @model_validator(mode="before")
    @classmethod
    def _split_tasks(cls, values: dict[str, Any]) -> dict[str, Any]:
        if isinstance(given := values.get("tasks"), str):
            values["tasks"] = tuple(name.strip() for name in given.split(",") if name.strip())
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if (self.aggregator_url is None) == (self.adapter_folder is None):
            raise ValueError("set AGGREGATOR_URL or ADAPTER_FOLDER, one of the two")
        if self.aggregator_url is not None and (self.reader_token is None) == (self.reader_token_file is None):
            raise ValueError("set READER_TOKEN or READER_TOKEN_FILE, one of the two")
        if self.open_access and self.key_file is not None:
            raise ValueError("OPEN_ACCESS lets everyone in, so KEY_FILE would be of no use; set one of the two")
        if self.adapter_folder is not None and not self.open_access and self.key_file is None:
            raise ValueError("without an aggregator to check tokens, set KEY_FILE, or OPEN_ACCESS=true to let everyone ask")
        return self

    @property
    def fallback_task(self) -> str | None:
        """The task of requests that name none."""
        return self.default_task or (self.tasks[0] if len(self.tasks) == 1 else None)

    def check_folders(self) -> None:
        """Look whether the folders are there.

        Raises:
            NotADirectoryError: one is not.
        """
        for name in ("adapter_folder", "demonstrations_folder"):
            folder: Path | None = getattr(self, name)
            if folder is not None and not folder.is_dir():
                raise NotADirectoryError(f"{name.upper()}={folder} is not a folder")

    def token(self) -> str | None:
        """The bearer token, from the variable or the file; None without an aggregator."""
        if self.reader_token is not None:
            return self.reader_token.get_secret_value()
        return None if self.reader_token_file is None else self.reader_token_file.read_text().strip()
