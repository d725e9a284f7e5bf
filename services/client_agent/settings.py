"""The client agent's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, HttpUrl, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ifed.data_files import check_encoding
from services.client_agent.limits import Limits


class Settings(BaseSettings):
    """Settings, read from environment variables of the same names in capitals."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    aggregator_url: HttpUrl = Field(description="URL of the aggregator")
    client_token: SecretStr | None = Field(None, description="this client's bearer token, shown when it was enrolled")
    client_token_file: Path | None = Field(None, description="a file that holds the token, instead of CLIENT_TOKEN")
    ca_file: Path | None = Field(
        None, description="certificates in PEM format that HTTPS trusts instead of the usual authorities; SSL_CERT_FILE works too"
    )
    proxy_url: SecretStr | None = Field(
        None, description="proxy for calls to the aggregator; by default that of HTTPS_PROXY and its siblings, and none on loopback"
    )
    max_answer_bytes: int = Field(
        64 * 2**20, ge=2**16, description="size of an answer of the aggregator in bytes; a larger one is refused while it arrives"
    )
    task: str = Field(min_length=1, description="the task to take part in")

    data_file: Path = Field(description="private labelled texts: .jsonl, .csv or .parquet")
    text_column: str = Field("text", description="column that holds the texts")
    label_column: str = Field("label", description="column that holds the labels")
    label_map: dict[str, str] = Field(default_factory=dict, description="JSON object that maps the file's labels to the task's")
    data_encoding: Annotated[str, AfterValidator(check_encoding)] = Field(
        "utf-8", description="encoding of a JSONL or CSV file; Excel on Windows often writes cp1252"
    )

    model: str | None = Field(
        None, description="name or folder of the model that this organisation runs; required unless ACCEPT_TASK_MODEL is set"
    )
    accept_task_model: bool = Field(
        False,
        description="without MODEL, load the model that the task names: a catalogue name or Hugging Face id of the admin's choice",
    )
    model_cache: Path | None = Field(None, description="folder of downloaded and converted models; in the user's cache by default")
    state_dir: Path = Field(
        Path(".ifed-agent"),
        description="folder of finished contributions until the aggregator has received them, hashes of the demonstrations sent, and the quantisation error of updates",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto is bfloat16 where that is fast, and float32 elsewhere"
    )
    threads: Annotated[int | None, Field(ge=1)] = Field(None, description="CPU threads; all cores by default")
    int8: bool = Field(False, description="quantise the layers' weights to eight bits with torchao; outputs differ slightly")
    token_budget: Annotated[int | None, Field(ge=16)] = Field(
        None, description="padded tokens in one batch at most, which bounds the memory; by default what suits the device"
    )

    min_examples: int = Field(
        32, ge=1, description="fewest texts in a context vector or an addition; a vector of few texts shows what they say"
    )
    max_rounds: int = Field(1000, ge=1, description="calibration rounds of a task at most, and number of the last round")
    max_steps: int = Field(1000, ge=1, description="optimiser steps of one round at most")
    max_batch_size: int = Field(512, ge=1, description="examples of one optimiser step at most")
    max_labels: int = Field(1000, ge=2, description="labels of a task at most")

    wait_for_task: bool = Field(
        False, description="keep asking while the task does not exist, instead of ending with the names of others"
    )
    wait_seconds: float = Field(25.0, ge=1, le=300, description="seconds the aggregator may hold a long poll for an assignment")
    stay: bool = Field(False, description="keep running after the task has finished, for a later start")
    host: str = Field("127.0.0.1", description="address of the agent's own status page")
    port: int = Field(8090, ge=0, le=65535, description="port of the agent's own status page")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level of log record shown")

    @model_validator(mode="after")
    def _one_token(self) -> Settings:
        if (self.client_token is None) == (self.client_token_file is None):
            state = "neither is set" if self.client_token is None else "both are set"
            raise ValueError(f"set either CLIENT_TOKEN or CLIENT_TOKEN_FILE: {state}")
        return self

    @model_validator(mode="after")
    def _known_model(self) -> Settings:
        if self.model is None and not self.accept_task_model:
            raise ValueError(
                "MODEL is not set; set it to the model that this organisation runs, or ACCEPT_TASK_MODEL=true to load what the task names"
            )
        return self

    def limits(self) -> Limits:
        """Return what an aggregator may ask for."""
        return Limits(
            rounds=self.max_rounds,
            steps=self.max_steps,
            batch_size=self.max_batch_size,
            labels=self.max_labels,
            examples=self.min_examples,
        )

    def token(self) -> str:
        """Return the bearer token, from the variable or the file.

        Raises:
            OSError: the file cannot be read.
        """
        if self.client_token is not None:
            return self.client_token.get_secret_value()
        assert self.client_token_file is not None
        return self.client_token_file.read_text().strip()
