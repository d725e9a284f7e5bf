"""Rules of the code that neither ruff nor import-linter checks: imports that run nothing, endpoints that only call, tests that claim."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.house import rules
from tests.house.quiet_import import LOUD
from tests.house.sources import CODE, ROOT, TESTS, Source, files_matching, published_texts, sources

TORCH = ("torch", "transformers", "accelerate", "gguf", "tokenizers")
ROUTES = ("services/*/api/*.py", "services/client_agent/endpoints.py")


@pytest.mark.slow
def test_the_aggregator_starts_where_torch_is_not_installed() -> None:
    program = f"import sys\nfor name in {TORCH!r}: sys.modules[name] = None\nimport services.aggregator.app"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the aggregator needs something that its image does not have:\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_importing_every_module_runs_nothing() -> None:
    modules = [source.module for source in sources(*CODE) if source.path not in LOUD]
    command = [sys.executable, "-B", "-m", "tests.house.quiet_import", *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"an import did more than define names:\n{done.stdout}{done.stderr[-2000:]}"
    assert all((ROOT / path).is_file() for path in LOUD), "an exception names a file that is gone"


def test_an_endpoint_parses_calls_and_returns() -> None:
    files = files_matching(*ROUTES)
    assert sum(len(rules.routes(source)) for source in files) > 40
    assert [problem for source in files for problem in rules.more_than_a_call(source)] == []


def test_no_test_is_skipped_without_a_reason() -> None:
    assert [problem for source in sources(*TESTS) for problem in rules.skips_without_reason(source)] == []


def test_the_name_of_a_test_is_its_claim() -> None:
    assert [problem for source in sources(*TESTS) for problem in rules.short_names(source)] == []


def test_no_file_names_a_registry_or_a_folder_of_one_machine() -> None:
    assert [problem for path, text in published_texts() for problem in rules.machine_traces(path, text)] == []


def test_code_that_comes_with_a_model_is_never_run() -> None:
    assert [problem for source in sources(*CODE) for problem in rules.may_run_code_of_a_model(source)] == []


SKIP = "pytest.mark." + "skip"


@pytest.mark.parametrize(
    ("rule", "broken", "kept"),
    [
        (
            rules.more_than_a_call,
            "@router.get('/x')\ndef x():\n    try:\n        f()\n    finally:\n        pass",
            "@router.get('/x')\ndef x():\n    return f()",
        ),
        (rules.more_than_a_call, "@api.put('/x')\ndef x(n):\n    return n + 1", "def x(n: int | None):\n    return n + 1"),
        (rules.skips_without_reason, f"@{SKIP}\ndef test_x(): pass", f"@{SKIP}(reason='needs a GPU')\ndef test_x(): pass"),
        (rules.skips_without_reason, "def test_x():\n    pytest.skip()", "def test_x():\n    pytest.skip('no server here')"),
        (
            rules.may_run_code_of_a_model,
            "AutoModel.from_pretrained(folder)",
            "AutoModel.from_pretrained(folder, **LOCAL)\nAutoModel.from_pretrained(folder, trust_remote_code=False)",
        ),
        (rules.short_names, "def test_works(): pass", "def test_a_closed_round_refuses(): pass"),
    ],
)
def test_a_rule_finds_what_breaks_it_and_passes_what_keeps_it(rule: Callable[[Source], list[str]], broken: str, kept: str) -> None:
    (problem,) = rule(Source("services/x/file.py", broken))
    assert problem.startswith("services/x/file.py:")
    assert rule(Source("services/x/file.py", kept)) == []


def test_a_trace_of_one_machine_is_found_and_words_that_look_alike_are_not() -> None:
    traces = ["see https://py" + "pi.org/x", "cd /wo" + "rk/main", "/op" + "t/venv/bin", "x=/tm" + "p/w/y", "/hom" + "e/me/x"]
    for trace in traces:
        assert rules.machine_traces("README.md", f"first\n{trace}")[0].startswith("README.md:2 holds")
    alike = ["a network/work/flow", "framework/x", "/tmp/www", "the homework", "src/opt/x"]
    assert rules.machine_traces("README.md", "\n".join(alike)) == []


@pytest.mark.slow
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
