"""Each rule is able to fail: a small made-up file that breaks it is found, one that keeps it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import typer
import typer.main

from tests.house import promises, rules, test_rooms
from tests.house.documents import Document, anchor, made, make_targets
from tests.house.sources import ROOT, Source

Rule = Callable[[Source], list[str]]
no_sql = partial(rules.forbidden_imports, roots=["sqlalchemy", "services.aggregator.tables"], remedy="ask the repository")
only_numpy = partial(rules.imports_beyond, allowed=rules.PURE_STDLIB | {"numpy"}, remedy="pass it in")
explained = partial(rules.environment_reads, with_reason=True)
SKIP = "pytest.mark." + "skip"

BREAKS: list[tuple[Rule, str, str]] = [
    (no_sql, "from sqlalchemy import select", "imports sqlalchemy.select"),
    (no_sql, "def f():\n    import sqlalchemy.orm", ":2 imports sqlalchemy.orm"),
    (no_sql, "from services.aggregator import tables", "imports services.aggregator.tables"),
    (no_sql, "if TYPE_CHECKING:\n    from sqlalchemy import Row", "imports sqlalchemy.Row"),
    (only_numpy, "import time", "imports time"),
    (only_numpy, "from ifed.clients import AggregatorClient", "imports ifed.clients"),
    (rules.impure_calls, "now = datetime.now(UTC)", "calls datetime.now"),
    (rules.impure_calls, "x = np.random.default_rng(0)", "calls np.random.default_rng"),
    (rules.impure_calls, "with open('x') as f: pass", "calls open"),
    (rules.error_handling, "try:\n    f()\nexcept KeyError:\n    pass", "has a try"),
    (rules.arithmetic, "def f(page):\n    return page + 1", "computes `page + 1`"),
    (rules.arithmetic, "n = 0\nn += 1", "computes `n += 1`"),
    (rules.environment_reads, "import os\nx = os.environ['X']", ":2 reads the environment"),
    (rules.environment_reads, "from os import getenv", ":1 reads the environment"),
    (rules.environment_reads, "# because\nx = os.getenv('X')", ":2 reads the environment"),
    (explained, "x = os.getenv('X')", ":1 reads the environment"),
    (rules.acts_on_import, "main()", "runs `main()` on import"),
    (rules.acts_on_import, "engine = create_async_engine('sqlite://')", "on import"),
    (rules.acts_on_import, "settings: Settings = Settings()", "on import"),
    (rules.acts_on_import, "KEY = Path('key').read_text()", "on import"),
    (rules.acts_on_import, "for x in y: f(x)", "on import"),
    (rules.acts_on_import, "with lock: x = 1", "on import"),
    (rules.acts_on_import, "try:\n    connect()\nexcept OSError:\n    pass", "on import"),
    (rules.missing_opening, "import os", "does not open with a sentence"),
    (rules.missing_opening, '"""no full stop"""', "does not open with a sentence"),
    (rules.missing_opening, '"""A sentence\nover two lines."""', "does not open with a sentence"),
    (rules.too_long, "x = 1\n" * 251, "has 251 lines"),
    (rules.long_functions, "def f():\n" + "    x = 1\n" * 41, "f has 41 lines"),
    (rules.long_functions, "class C:\n    async def f(self):\n" + "        x = 1\n" * 41, "f has 41 lines"),
    (rules.skips_without_reason, f"@{SKIP}\ndef test_x(): pass", "skips without a reason"),
    (rules.skips_without_reason, f"@{SKIP}if(True)\ndef test_x(): pass", "skips without a reason"),
    (rules.skips_without_reason, "@pytest.mark.xfail\ndef test_x(): pass", "skips without a reason"),
    (rules.skips_without_reason, "def test_x():\n    pytest.skip()", "skips without a reason"),
    (rules.skips_without_reason, "numpy = pytest.importorskip('numpy')", "skips without a reason"),
    (rules.mocks, "from unittest.mock import patch", "imports unittest.mock.patch"),
    (rules.mocks, "from unittest import mock", "imports unittest.mock"),
]

KEEPS: list[tuple[Rule, str]] = [
    (no_sql, "from services.aggregator import tables_of_contents"),
    (only_numpy, "import numpy as np\nfrom datetime import datetime"),
    (rules.impure_calls, "later = now + timedelta(seconds=1)"),
    (rules.error_handling, "with suppress(KeyError): f()"),
    (rules.arithmetic, "x: int | None = None\ny = {} | {}"),
    (explained, "# set by the launcher before anything is imported\nx = os.environ['RANK']"),
    (rules.acts_on_import, "import a\nlog = structlog.get_logger(__name__)\nT = TypeVar('T')\nif TYPE_CHECKING:\n    import b"),
    (rules.acts_on_import, "if __name__ == '__main__':\n    main()"),
    (rules.missing_opening, '"""Its job. Its border."""'),
    (rules.missing_opening, '"""Its job.\n\nMore of it.\n"""'),
    (rules.too_long, "x = 1\n" * 250),
    (rules.long_functions, 'def f():\n    """Words."""\n' + "    x = 1\n\n    # why\n" * 40),
    (rules.skips_without_reason, f"@{SKIP}(reason='needs a GPU')\ndef test_x(): pass"),
    (rules.skips_without_reason, "def test_x():\n    pytest.skip('no server here')"),
    (rules.mocks, "from tests.fakes import FakeStore"),
]


@pytest.mark.parametrize(("rule", "text", "words"), BREAKS)
def test_a_file_that_breaks_the_rule_is_found(rule: Rule, text: str, words: str) -> None:
    found = rule(Source("services/made_up/file.py", text))
    assert any(words in sentence for sentence in found), found
    assert all(sentence.startswith("services/made_up/file.py") for sentence in found)


@pytest.mark.parametrize(("rule", "text"), KEEPS)
def test_a_file_that_keeps_the_rule_passes(rule: Rule, text: str) -> None:
    assert rule(Source("services/made_up/file.py", text)) == []


ROOMS: list[tuple[Callable[[Source], None], str, str]] = [
    (test_rooms.test_the_domain_knows_only_numbers_states_and_refusals, "aggregator/domain.py", "from ifed.contracts import Page"),
    (test_rooms.test_the_domain_knows_only_numbers_states_and_refusals, "aggregator/plan.py", "import random"),
    (test_rooms.test_what_says_it_knows_no_clock_reads_none, "aggregator/tally.py", "from time import monotonic"),
    (
        test_rooms.test_a_service_knows_its_storage_cache_and_engine_as_protocols,
        "aggregator/closing.py",
        "from services.aggregator.stored_tasks import StoredTasks",
    ),
    (
        test_rooms.test_a_service_knows_its_storage_cache_and_engine_as_protocols,
        "inference/service.py",
        "from services.inference.engine import Engine",
    ),
    (test_rooms.test_storage_knows_no_web_no_cache_and_no_service, "aggregator/repository.py", "import redis"),
    (test_rooms.test_the_cache_is_never_the_truth, "aggregator/cache.py", "from services.aggregator.repository import connect"),
    (
        test_rooms.test_the_web_side_reaches_the_rest_through_the_service,
        "aggregator/endpoints_admin.py",
        "from services.aggregator.domain import Round",
    ),
    (test_rooms.test_an_endpoint_parses_calls_and_returns, "inference/endpoints.py", "def f(x): return x * 2"),
    (test_rooms.test_settings_know_nothing_of_ours, "inference/settings.py", "from ifed.paths import cache_folder"),
    (test_rooms.test_no_one_imports_the_app_that_joins_them, "aggregator/ticker.py", "from services.aggregator.app import serve"),
    (
        test_rooms.test_the_environment_is_read_in_settings_and_on_the_command_line_alone,
        "aggregator/cache.py",
        "import os\nx = os.environ",
    ),
]


@pytest.mark.parametrize(("room", "path", "text"), ROOMS)
def test_a_room_refuses_what_it_may_not_import(room: Callable[[Source], None], path: str, text: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"services/{path}"):
        room(Source(f"services/{path}", text))


@pytest.mark.parametrize(
    ("wall", "path", "text"),
    [
        ("torch and what loads models", "services/inference/engine.py", "import torch"),
        ("the language model", "services/aggregator/tally.py", "from ifed.modeling.batching import Row"),
        ("the web framework", "services/aggregator/service.py", "from fastapi import Depends"),
        ("SQL", "services/aggregator/closing.py", "from sqlalchemy import select"),
        ("Redis", "services/aggregator/backstage.py", "from redis.asyncio import Redis"),
        ("settings from the environment", "ifed/logs.py", "from pydantic_settings import BaseSettings"),
        ("the terminal", "ifed/modeling/catalog.py", "from rich.console import Console"),
        ("HTTP to other services", "services/inference/adapters.py", "import httpx"),
    ],
)
def test_a_library_outside_its_room_is_found(wall: str, path: str, text: str) -> None:
    assert test_rooms.trespasses(wall, [Source(path, text)])


@pytest.mark.parametrize("path", ["ifed/utils.py", "services/x/token_helpers.py", "ifed/common/x.py", "ifed/manager.py"])
def test_a_name_that_says_nothing_is_found(path: str) -> None:
    assert rules.empty_names(Source(path, ""))


def test_a_name_that_holds_such_a_word_within_another_passes() -> None:
    assert rules.empty_names(Source("ifed/uncommonly_managed.py", "")) == []


@pytest.mark.parametrize(
    "text", ["see https://py" + "pi.org/x", "cd /wo" + "rk/main", "/op" + "t/venv/bin", "x=/tm" + "p/w/y", "/hom" + "e/me/x"]
)
def test_a_trace_of_one_machine_is_found(text: str) -> None:
    assert rules.machine_traces("README.md", f"first\n{text}")[0].startswith("README.md:2 holds")


@pytest.mark.parametrize("text", ["a network/work/flow", "framework/x", "/tmp/www", "the homework", "src/opt/x"])
def test_words_that_look_alike_are_no_trace(text: str) -> None:
    assert rules.machine_traces("README.md", text) == []


def test_a_document_is_read_for_what_it_promises() -> None:
    text = "# A *b* `c`: d\n\n[x](y.md#z) `ifed task list`\n\n```bash\n# no\n$ make test \\\n  ARGS=1\n[no](no.md)\n```\n\n## T\n\n| a | b |\n|---|---|\n| `X` | 1 |\n"
    document = Document("x.md", text)
    assert document.links == ["y.md#z"]
    assert document.anchors == {"a-b-c-d", "t"}
    assert document.shell == ["make test  ARGS=1", "[no](no.md)"]
    assert document.rows("T") == [("a", "b"), ("`X`", "1")]
    assert list(made(document)) == ["test"]
    assert anchor("`make demo`, step by step") == "make-demo-step-by-step"
    assert make_targets("all: x\n.venv/x: y\n\tz\nlint:\n") == {"all", "lint"}


def test_a_command_line_that_does_not_exist_is_found() -> None:
    app = typer.Typer()

    @app.command("go")
    def go(far: bool = False) -> None: ...

    @app.command("come")
    def come() -> None: ...

    root = typer.main.get_command(app)
    assert list(promises.command_problems("ifed go --far", root)) == []
    assert "no command 'run'" in next(promises.command_problems("ifed run", root))
    assert "no option --near" in next(promises.command_problems("ifed go --near", root))


def test_an_import_that_does_something_is_found(tmp_path: Path) -> None:
    (tmp_path / "quiet.py").write_text("import os\nX = 1\n")
    (tmp_path / "loud.py").write_text(
        "import os, sqlite3\nopen('out', 'w').close()\nos.environ['X'] = '1'\nsqlite3.connect(':memory:')\n"
    )
    program = f"import sys; sys.path.append({str(ROOT)!r}); from tests.house.quiet_import import main; main()"

    def run(*modules: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-B", "-c", program, *modules]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run("quiet").returncode == 0
    loud = run("quiet", "loud")
    assert loud.returncode == 1, loud.stderr
    for deed in ("opens 'out' for writing", "changes the environment", "does sqlite3.connect"):
        assert deed in loud.stdout, loud.stdout
