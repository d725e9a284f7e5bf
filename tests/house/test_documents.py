"""A promise in prose is kept: every setting, refusal, route, link and command in the documents is the code's own."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer.main

from ifed.cli import console
from ifed.cli.main import app as command_line
from ifed.messages.inference import ClassifyResponse
from ifed.messages.tasks import TaskSpec
from services.client_agent.demonstrations import Columns, read, split
from tests.house import documents, promises
from tests.house.documents import Document
from tests.house.holding import hold
from tests.house.rules import machine_traces
from tests.house.sources import ROOT, published_texts, sources

SETTINGS, ERRORS, HTTP, README = "docs/ref-settings.md", "docs/ref-errors.md", "docs/ref-http.md", "README.md"
TUTORIAL = "docs/tutorial-first-federation.md"
IFED = re.compile(r"^(?:[A-Z_]+=\$?\(?)?(?:\.venv/bin/)?(?=ifed )")


def each_document() -> pytest.MarkDecorator:
    """The test once for each published Markdown file."""
    return pytest.mark.parametrize("document", documents.documents(), ids=lambda document: document.path)


def each_service() -> pytest.MarkDecorator:
    """The test once for each service: its heading in the references, its folder."""
    return pytest.mark.parametrize(("heading", "service"), promises.SERVICES.items())


@each_service()
def test_every_setting_says_what_it_is(heading: str, service: str) -> None:
    silent = [setting.name for setting in promises.settings_of(service) if not setting.description]
    assert not silent, f"give these fields of services/{service}/settings.py a description: {', '.join(silent)}"


@each_service()
def test_a_settings_error_never_shows_a_secret(heading: str, service: str) -> None:
    hidden = promises.settings_class(service).model_config.get("hide_input_in_errors")
    assert hidden, f"services/{service}/settings.py: set hide_input_in_errors=True, or a wrong setting prints the tokens beside it"


@each_service()
def test_the_settings_reference_is_what_the_code_says(heading: str, service: str) -> None:
    rows = [f"| {' | '.join(row)} |" for row in documents.document(SETTINGS).rows(heading)][1:]
    wanted = [setting.row for setting in promises.settings_of(service)]
    hold(
        [f"{SETTINGS}, under {heading!r}: put in\n{row}" for row in wanted if row not in rows]
        + [f"{SETTINGS}, under {heading!r}: take out\n{row}" for row in rows if row not in wanted]
    )


def test_the_example_environment_holds_what_is_read_and_nothing_else() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    named = {match[1] for line in lines if (match := re.match(r"(?:# )?([A-Z][A-Z_]+)=", line))}
    settings = {setting.name for service in promises.SERVICES.values() for setting in promises.settings_of(service)}
    read = settings | promises.compose_variables()
    assert named <= read, f".env.example names what no service and no compose file reads: {sorted(named - read)}"
    needed = {
        setting.name for service in promises.SERVICES.values() for setting in promises.settings_of(service) if setting.required
    }
    needed |= {name for name in settings if name.endswith(("_TOKEN", "_TOKEN_FILE", "_URL"))}
    assert needed <= named, f".env.example leaves out what a deployer must set: {sorted(needed - named)}"


def test_the_error_reference_names_every_refusal_with_its_status() -> None:
    rows = {row[0].strip("`"): row[1] for row in documents.document(ERRORS).rows() if row[0].startswith("`")}
    wanted = {name: str(kind.status) for name, kind in promises.refusals().items()}
    hold(
        [f"{ERRORS}: give {name} a row with status {status}" for name, status in wanted.items() if rows.get(name) != status]
        + [f"{ERRORS}: {name} is no refusal of errors.py; take its row out" for name in rows if name not in wanted]
    )


@each_service()
def test_the_http_reference_names_every_route(heading: str, service: str) -> None:
    rows = {row[0].strip("`") for row in documents.document(HTTP).rows(heading) if re.match(r"`[A-Z]+ /", row[0])}
    wanted = set(promises.routes_of(promises.app_of(service)))
    hold(
        [f"{HTTP}, under {heading!r}: give `{route}` a row" for route in sorted(wanted - rows)]
        + [f"{HTTP}, under {heading!r}: `{route}` is no route; take its row out" for route in sorted(rows - wanted)]
    )


@each_service()
def test_every_route_says_what_it_does(heading: str, service: str) -> None:
    silent = [
        route for route, operation in promises.routes_of(promises.app_of(service)).items() if not operation.get("description")
    ]
    silent = [route for route in silent if route != "GET /metrics"]  # mounted by the instrumentation library
    assert not silent, f"give the functions of these routes a docstring, it stands in OpenAPI: {silent}"


@each_document()
def test_every_relative_link_leads_somewhere(document: Document) -> None:
    problems = []
    for link in document.links:
        target, _, fragment = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = ((ROOT / document.path).parent / target).resolve() if target else ROOT / document.path
        if not place.exists():
            problems.append(f"{document.path}: {link} is not there; write it or mend the link")
        elif fragment and fragment not in documents.document(place.relative_to(ROOT).as_posix()).anchors:
            problems.append(f"{document.path}: {link} names no heading of {place.name}")
    hold(problems)


@each_document()
def test_every_image_says_in_words_what_it_shows(document: Document) -> None:
    hold([f"{document.path}: give {target} an alternative text" for words, target in document.images if len(words) < 20])


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.svg")), ids=lambda path: path.name)
def test_every_drawing_is_well_formed_and_has_a_title(path: Path) -> None:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert root.find("{http://www.w3.org/2000/svg}title") is not None, f"{path.name}: open it with a <title>"


@pytest.mark.parametrize("path", sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))
def test_every_page_is_in_the_index(path: str) -> None:
    if path.startswith("docs/decisions/") or path == "docs/README.md":
        return
    assert path.removeprefix("docs/") in documents.document("docs/README.md").links, f"name {path} in docs/README.md"


@each_document()
def test_every_make_command_is_a_target(document: Document) -> None:
    targets = documents.make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    unknown = sorted(set(documents.made(document)) - targets)
    assert not unknown, f"{document.path} tells people to make {unknown}; the Makefile has {sorted(targets)}"


@each_document()
def test_every_ifed_command_and_option_exists(document: Document) -> None:
    root = typer.main.get_command(command_line)
    lines = [IFED.sub("", line) for line in [*document.shell, *document.spans] if IFED.match(line)]
    hold([f"{document.path}: {problem}" for line in lines if "…" not in line for problem in promises.command_problems(line, root)])


@each_document()
def test_every_variable_set_in_a_shell_block_is_read_by_something(document: Document) -> None:
    settings = {setting.name for service in promises.SERVICES.values() for setting in promises.settings_of(service)}
    options = {"IFED_TOKEN", "IFED_AGGREGATOR_URL", "IFED_INFERENCE_URL", "PYTHON", "COMPOSE_PROFILES"} | named_by_tests()
    options |= promises.compose_variables() | documents.make_variables((ROOT / "Makefile").read_text(encoding="utf-8"))
    text = "\n".join(document.shell)
    named = re.findall(r"(?:^|\s)(?:export )?([A-Z][A-Z_0-9]+)=", text)
    unknown = sorted({name for name in named if name not in settings | options and f"${name}" not in text})
    assert not unknown, f"{document.path} sets {unknown}, which nothing reads"


def named_by_tests() -> set[str]:
    """Environment variables that the tests name."""
    return {name for source in sources("tests") for name in re.findall(r"[\"'](TEST_[A-Z_]+)[\"']", source.text)}


def test_the_readme_tells_everything_that_ci_runs() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in script if line and not re.match(r"#|set |cd ", line)]
    readme = documents.document(README)
    missing = [command for command in commands if command not in readme.shell + readme.spans]
    assert commands, ".ci/run runs nothing"
    assert not missing, f"README.md does not tell a newcomer to run {missing}"


def test_the_tutorial_makes_a_task_and_files_that_are_accepted(tmp_path: Path) -> None:
    written = dict(re.findall(r"cat > (\S+) <<'END'\n(.*?)^END$", documents.document(TUTORIAL).text, re.M | re.S))
    task = TaskSpec.model_validate_json(written.pop("task.json"))
    assert written, f"{TUTORIAL} writes no private file"
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        parts = split(read(tmp_path / name, task.labels, Columns()), holdout=task.policy.holdout, max_holdout=100)
        assert len(parts.training) > len(parts.holdout)


def test_the_data_page_shows_files_that_are_accepted(tmp_path: Path) -> None:
    shown = re.findall(r"^```(json|csv)\n(.*?)^```", documents.document("docs/ref-data-files.md").text, re.M | re.S)
    assert {kind for kind, _ in shown} == {"json", "csv"}
    for kind, text in shown:
        file = tmp_path / f"shown.{'jsonl' if kind == 'json' else kind}"
        file.write_text(text, encoding="utf-8")
        assert len(read(file, ["negative", "positive"], Columns())) == 2


def test_the_readme_shows_an_answer_of_the_service() -> None:
    shown = re.findall(r"^```json\n(.*?)^```", documents.document(README).text, re.M | re.S)
    assert shown, "README.md shows no answer to its curl line"
    for answer in shown:
        ClassifyResponse.model_validate_json(answer)


def test_every_page_that_the_code_names_is_there() -> None:
    named = {
        (source.path, page) for source in sources("ifed", "services") for page in re.findall(r"docs/[\w/.-]+\.md", source.text)
    }
    hold(
        [
            f"{path} sends its reader to {page}, which is not there; write it"
            for path, page in sorted(named)
            if not (ROOT / page).is_file()
        ]
    )


@each_document()
def test_no_placeholder_is_left(document: Document) -> None:
    left = documents.PLACEHOLDER.findall(document.text)
    assert not left, f"{document.path}: fill {', '.join(left)} in from a real run"


def test_the_changelog_tells_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changelog = documents.document("CHANGELOG.md").text
    assert re.search(rf"^## \[(Unreleased|{re.escape(version)})\]", changelog, re.M), f"CHANGELOG.md has no part for {version}"


def test_the_command_line_looks_where_the_services_listen() -> None:
    for url, service in ((console.DEFAULT_AGGREGATOR, "aggregator"), (console.DEFAULT_INFERENCE, "inference")):
        fields = promises.settings_class(service).model_fields
        listens = f"http://{fields['host'].default}:{fields['port'].default}"
        assert url == listens, f"`ifed` looks for the {service} on {url} and it listens on {listens}: make them one in either file"


def test_everything_the_project_depends_on_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {_name(line) for part in (project["dependencies"], *project["optional-dependencies"].values()) for line in part}
    pinned = {_name(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line}
    assert wanted - {"ifed-icl"} <= pinned, f"pin these in constraints.txt: {sorted(wanted - pinned - {'ifed-icl'})}"


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ;]", requirement)[0].lower().replace("_", "-")


def test_no_file_names_a_registry_or_a_folder_of_one_machine() -> None:
    hold([words for path, text in published_texts() for words in machine_traces(path, text)])
