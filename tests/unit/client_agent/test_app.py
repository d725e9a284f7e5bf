"""The application runs the agent's loop and says on its status page what the agent is doing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import structlog

from ifed.messages.enums import AssignmentKind
from services.client_agent.app import create_app, main
from services.client_agent.settings import Settings
from tests.unit.client_agent.fakes import assignment, brief

NOBODY = "http://127.0.0.1:1"


def settings(folder: Path, *, token: str = "token") -> Settings:
    return Settings.model_validate(
        {
            "aggregator_url": NOBODY,
            "client_token": token,
            "model": "tiny",
            "task": "sentiment",
            "data_file": folder / "data.jsonl",
            "state_dir": folder,
        }
    )


async def test_an_agent_without_an_aggregator_is_ready_and_retries(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path))
    async with app.router.lifespan_context(app), page(app) as http:
        async with asyncio.timeout(10):
            while (status := (await http.get("/v1/status")).json())["activity"] != "retrying":
                await asyncio.sleep(0.01)
        assert (status["task"], status["contributions"]) == ("sentiment", 0)
        assert NOBODY in status["note"]
        assert (await http.get("/readyz")).json()["checks"] == {"agent": "ok"}
        assert "ifed_agent_contributions 0.0" in (await http.get("/metrics")).text


async def test_an_agent_that_cannot_take_part_is_not_ready_and_ends_with_code_1(tmp_path: Path) -> None:
    exit_code = asyncio.get_running_loop().create_future()
    app = create_app(settings(tmp_path, token="to…ken"), on_end=exit_code.set_result)
    async with app.router.lifespan_context(app), page(app) as http:
        assert await asyncio.wait_for(exit_code, 10) == 1
        readiness = await http.get("/readyz")
        assert readiness.status_code == 503
        assert "this token holds a character" in readiness.json()["checks"]["agent"]


@pytest.mark.parametrize("tokens", [{}, {"client_token": "a", "client_token_file": "b"}])
def test_settings_take_the_token_from_exactly_one_place(tmp_path: Path, tokens: dict[str, str]) -> None:
    fields = settings(tmp_path).model_dump(exclude={"client_token", "client_token_file"})
    with pytest.raises(ValueError, match="CLIENT_TOKEN or CLIENT_TOKEN_FILE"):
        Settings.model_validate(fields | tokens)


def page(app: object) -> httpx.AsyncClient:
    """An HTTP client of the agent's status page."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://agent")  # type: ignore[arg-type]


async def ended(folder: Path, **changes: object) -> tuple[int, str]:
    """Run an agent until it ends by itself; return its exit code and the reason on its status page."""
    exit_code = asyncio.get_running_loop().create_future()
    app = create_app(settings(folder).model_copy(update=changes), on_end=exit_code.set_result)
    async with app.router.lifespan_context(app), page(app) as http:
        code = await asyncio.wait_for(exit_code, 10)
        return code, (await http.get("/readyz")).json()["checks"]["agent"]


@pytest.fixture
async def aggregator() -> AsyncIterator[tuple[str, list[bytes]]]:
    """The URL of a server on loopback, and what it answers to every request, which a test may change."""
    joining = assignment(AssignmentKind.JOIN, task=brief(max_demonstrations=300)).model_copy(update={"client": "me"})
    answer = [joining.model_dump_json().encode()]

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(answer[0]), answer[0]))
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", answer


async def test_an_agent_with_a_bad_row_ends_with_code_3_before_it_loads_a_model(
    tmp_path: Path, aggregator: tuple[str, list[bytes]]
) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "good", "label": "JANE"}\n')
    code, reason = await ended(tmp_path, aggregator_url=aggregator[0])
    assert code == 3
    assert reason.startswith("BadData: data.jsonl, line 1: the label is none of 'no', 'yes'")


async def test_an_agent_with_few_texts_ends_with_code_3_before_it_loads_a_model(
    tmp_path: Path, aggregator: tuple[str, list[bytes]]
) -> None:
    rows = [{"text": f"text {number}", "label": ("no", "yes")[number % 2]} for number in range(24)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, reason = await ended(tmp_path, aggregator_url=aggregator[0])
    assert code == 3
    assert reason.startswith("TooFewExamples: data.jsonl leaves 20 training examples, fewer than MIN_EXAMPLES=32")


async def test_an_agent_names_a_file_that_it_cannot_use_and_ends_with_code_2(tmp_path: Path) -> None:
    code, reason = await ended(tmp_path, client_token=None, client_token_file=tmp_path / "none")
    assert code == 2
    assert reason.startswith(f"No such file or directory: {tmp_path / 'none'}; ")


async def test_an_unexpected_error_shows_no_message(tmp_path: Path, aggregator: tuple[str, list[bytes]]) -> None:
    state = tmp_path / "sentiment--me" / "condensed.json"
    state.parent.mkdir()
    state.write_text('{"JANE": ')
    with structlog.testing.capture_logs() as logs:
        code, reason = await ended(tmp_path, aggregator_url=aggregator[0])
    assert (code, reason) == (1, "unexpected error (JSONDecodeError); the log says where")
    assert any("state.py" in place for place in logs[-1]["where"])
    assert "JANE" not in str(logs)


@pytest.fixture
def _logging_is_restored() -> Iterator[None]:
    """Undo what a process does to the logging of its own."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, **environment: str
) -> tuple[object, str]:
    """Run an agent's process function that must end by itself; return its exit code and the last line on standard error."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    configuration = {
        "AGGREGATOR_URL": NOBODY,
        "CLIENT_TOKEN": "token",
        "TASK": "sentiment",
        "DATA_FILE": "none.csv",
        "MODEL": "tiny",
    }
    for name, value in (configuration | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["agent", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("_logging_is_restored")
@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        ((), {"MODEL": ""}, 2, "MODEL is not set"),
        ((), {"CLIENT_TOKEN": "to…ken"}, 2, "this token holds a character"),
        ((), {"AGGREGATOR_URL": "https://aggregator", "ALL_PROXY": "foo://a:b"}, 2, "a proxy cannot be used"),
        ((), {"DATA_ENCODING": "none"}, 2, "'none' is no encoding"),
        ((), {}, 3, "the client agent: BadData: none.csv is not a file"),
        (("join",), {}, 2, "unknown command 'join'"),
        (("withdraw",), {}, 1, "the client agent: Unavailable: http://127.0.0.1:1"),
    ],
)
def test_a_process_that_cannot_start_ends_with_its_code_and_the_reason_as_the_last_line(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended, line = start(monkeypatch, capsys, *arguments, **environment)
    assert ended == code
    assert words in line
