"""A promise in prose is kept: every setting, refusal, route, link and command in the documents is the code's own."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import typer
import typer.main

from ifed.cli import console
from ifed.cli.main import app as command_line
from ifed.messages.inference import ClassifyResponse
from ifed.messages.tasks import Policy, TaskSpec
from services.client_agent.demonstrations import Columns, read_data_file, split_holdout
from services.client_agent.status import ExitCode
from tests.house import documents, promises, task_reference
from tests.house.documents import Document
from tests.house.sources import ROOT, sources

SETTINGS, ERRORS, HTTP, README = "docs/ref-settings.md", "docs/ref-errors.md", "docs/ref-http.md", "README.md"
TUTORIAL = "docs/tutorial-first-federation.md"
IFED = re.compile(r"^(?:[A-Z_]+=\$?\(?)?(?:\.venv/bin/)?(?=ifed )")


def of_services(problems: Callable[[str, str], Iterator[str]]) -> list[str]:
    """Return the problems of each service, given its heading in the references and its folder."""
    return [problem for heading, service in promises.SERVICES.items() for problem in problems(heading, service)]


def of_documents(problems: Callable[[Document], Iterator[str]]) -> list[str]:
    """Return the problems of each published Markdown file."""
    return [f"{document.path}: {problem}" for document in documents.documents() for problem in problems(document)]


def test_every_setting_says_what_it_is_and_hides_its_value_in_errors() -> None:
    def problems(_heading: str, service: str) -> Iterator[str]:
        yield from (f"{service}: describe {setting.name}" for setting in promises.settings_of(service) if not setting.description)
        if not promises.settings_class(service).model_config.get("hide_input_in_errors"):
            yield f"{service}: set hide_input_in_errors=True, or a wrong setting prints the tokens beside it"

    assert of_services(problems) == []


def test_the_settings_reference_is_what_the_code_says() -> None:
    def problems(heading: str, service: str) -> Iterator[str]:
        rows = [f"| {' | '.join(row)} |" for row in documents.document(SETTINGS).rows(heading)][1:]
        expected = [setting.row for setting in promises.settings_of(service)]
        yield from (f"{SETTINGS}, under {heading!r}: put in\n{row}" for row in expected if row not in rows)
        yield from (f"{SETTINGS}, under {heading!r}: take out\n{row}" for row in rows if row not in expected)

    assert of_services(problems) == []


def test_the_exit_codes_of_an_agent_are_documented() -> None:
    rows = documents.document(SETTINGS).rows("Exit codes of the client agent")[1:]
    assert [row[0] for row in rows] == [str(code.value) for code in ExitCode]


def test_the_task_reference_is_what_the_code_says() -> None:
    written = task_reference.PAGE.read_text(encoding="utf-8").splitlines()
    expected = task_reference.page().splitlines()
    assert written == expected, f"run `{task_reference.COMMAND}`, which writes {task_reference.PAGE.name} from the code"


def test_every_example_of_a_policy_is_accepted() -> None:
    examples = {name: field.examples[0] for name, field in Policy.model_fields.items() if field.examples}
    assert {name: getattr(Policy.model_validate({name: value}), name) for name, value in examples.items()} == examples


def test_the_command_reference_names_every_command_and_exit_code() -> None:
    page = documents.document("docs/ref-cli.md")
    commands = {f"ifed {name}" for name in promises.commands_of(typer.main.get_command(command_line))}
    assert {row[0].strip("`") for row in page.rows() if row[0].startswith("`ifed ")} == commands
    assert [row[0] for row in page.rows("Exit codes")[1:]] == [str(code.value) for code in console.ExitCode]


def test_the_example_environment_holds_what_is_read_and_nothing_else() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    named = {match[1] for line in lines if (match := re.match(r"(?:# )?([A-Z][A-Z_]+)=", line))}
    settings = promises.setting_names()
    unknown = named - settings - promises.compose_variables()
    assert unknown == set(), ".env.example names what no service and no compose file reads"
    required = {
        setting.name for service in promises.SERVICES.values() for setting in promises.settings_of(service) if setting.required
    }
    required |= {name for name in settings if name.endswith(("_TOKEN", "_TOKEN_FILE", "_URL"))}
    assert required - named == set(), ".env.example leaves out what a deployer must set"


def test_the_error_reference_names_every_refusal_with_its_status() -> None:
    rows = {row[0].strip("`"): row[1] for row in documents.document(ERRORS).rows() if row[0].startswith("`")}
    assert rows == {name: str(kind.status) for name, kind in promises.refusals().items()}


def test_the_http_reference_names_every_route() -> None:
    def problems(heading: str, service: str) -> Iterator[str]:
        rows = {row[0].strip("`") for row in documents.document(HTTP).rows(heading) if re.match(r"`[A-Z]+ /", row[0])}
        routes = set(promises.routes_of(promises.app_of(service)))
        yield from (f"{HTTP}, under {heading!r}: give `{route}` a row" for route in sorted(routes - rows))
        yield from (f"{HTTP}, under {heading!r}: `{route}` is no route; take its row out" for route in sorted(rows - routes))

    assert of_services(problems) == []


def test_every_route_says_what_it_does() -> None:
    def problems(_heading: str, service: str) -> Iterator[str]:
        for route, operation in promises.routes_of(promises.app_of(service)).items():
            if not operation.get("description") and route != "GET /metrics":  # mounted by the instrumentation library
                yield f"{service}: give the function of {route} a docstring, it stands in OpenAPI"

    assert of_services(problems) == []


def test_every_relative_link_leads_somewhere() -> None:
    def problems(document: Document) -> Iterator[str]:
        for link in document.links:
            target, _, fragment = link.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            place = ((ROOT / document.path).parent / target).resolve() if target else ROOT / document.path
            if not place.exists():
                yield f"{link} is not there; write it or mend the link"
            elif fragment and fragment not in documents.document(place.relative_to(ROOT).as_posix()).anchors:
                yield f"{link} names no heading of {place.name}"

    assert of_documents(problems) == []


def test_every_image_says_in_words_what_it_shows() -> None:
    def problems(document: Document) -> Iterator[str]:
        yield from (f"give {target} an alternative text" for words, target in document.images if len(words) < 20)

    assert of_documents(problems) == []


def test_every_drawing_is_well_formed_and_has_a_title() -> None:
    drawings = [*(ROOT / "docs").rglob("*.svg"), *(ROOT / "benchmarks/results").rglob("*.svg")]
    assert drawings
    titles = {
        path: ElementTree.fromstring(path.read_text(encoding="utf-8")).find("{http://www.w3.org/2000/svg}title")
        for path in drawings
    }
    assert [path.name for path, title in titles.items() if title is None] == []


def test_every_make_command_is_a_target() -> None:
    targets = documents.make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))

    def problems(document: Document) -> Iterator[str]:
        yield from (f"make {name} is no target of the Makefile" for name in sorted(set(documents.made(document)) - targets))

    assert of_documents(problems) == []


def test_every_ifed_command_and_option_exists() -> None:
    root = typer.main.get_command(command_line)

    def problems(document: Document) -> Iterator[str]:
        lines = [IFED.sub("", line) for line in [*document.shell, *document.spans] if IFED.match(line)]
        yield from (problem for line in lines if "…" not in line for problem in promises.command_problems(line, root))

    assert of_documents(problems) == []


def test_every_variable_set_in_a_shell_block_is_read_by_something() -> None:
    options = {
        "IFED_TOKEN",
        "IFED_TOKEN_FILE",
        "IFED_AGGREGATOR_URL",
        "IFED_INFERENCE_URL",
        "PYTHON",
        "COMPOSE_PROFILES",
    } | promises.setting_names()
    options |= promises.compose_variables() | documents.make_variables((ROOT / "Makefile").read_text(encoding="utf-8"))
    options |= {name for source in sources("tests", "testing") for name in re.findall(r"[\"'](TEST_[A-Z_]+)[\"']", source.text)}

    def problems(document: Document) -> Iterator[str]:
        text = "\n".join(document.shell)
        named = set(re.findall(r"(?:^|\s)(?:export )?([A-Z][A-Z_0-9]+)=", text))
        yield from (f"sets {name}, which nothing reads" for name in sorted(named - options) if f"${name}" not in text)

    assert of_documents(problems) == []


def test_the_readme_tells_everything_that_ci_runs() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in script if line and not re.match(r"#|set |cd ", line)]
    readme = documents.document(README)
    assert commands, ".ci/run runs nothing"
    assert [command for command in commands if command not in readme.shell + readme.spans] == []


def test_the_tutorial_makes_a_task_and_files_that_are_accepted(tmp_path: Path) -> None:
    written = dict(re.findall(r"cat > (\S+) <<'END'\n(.*?)^END$", documents.document(TUTORIAL).text, re.M | re.S))
    task = TaskSpec.model_validate_json(written.pop("task.json"))
    assert written, f"{TUTORIAL} writes no private file"
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        parts = split_holdout(read_data_file(tmp_path / name, task.labels, Columns()), holdout=task.policy.holdout, max_holdout=100)
        assert len(parts.training) > len(parts.holdout)


def test_the_data_page_shows_files_that_are_accepted(tmp_path: Path) -> None:
    shown = re.findall(r"^```(json|csv)\n(.*?)^```", documents.document("docs/ref-data-files.md").text, re.M | re.S)
    assert {kind for kind, _ in shown} == {"json", "csv"}
    for kind, text in shown:
        file = tmp_path / f"shown.{'jsonl' if kind == 'json' else kind}"
        file.write_text(text, encoding="utf-8")
        assert len(read_data_file(file, ["negative", "positive"], Columns())) == 2


def test_the_readme_shows_an_answer_of_the_service() -> None:
    shown = re.findall(r"^```json\n(.*?)^```", documents.document(README).text, re.M | re.S)
    assert shown, "README.md shows no answer to its curl line"
    for answer in shown:
        ClassifyResponse.model_validate_json(answer)


def test_every_page_that_the_code_names_is_there() -> None:
    named = {
        (source.path, page) for source in sources("ifed", "services") for page in re.findall(r"docs/[\w/.-]+\.md", source.text)
    }
    assert sorted((path, page) for path, page in named if not (ROOT / page).is_file()) == []


def test_the_files_that_a_reader_is_sent_to_are_there() -> None:
    paths = [
        f"/{path.relative_to(ROOT).as_posix()}"
        for folder in ("ifed", "services", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]

    def problems(document: Document) -> Iterator[str]:
        files = [span for span in document.spans if re.fullmatch(r"[\w/]+\.py", span)]
        yield from (f"{file} is not there" for file in files if not any(path.endswith(f"/{file}") for path in paths))

    assert of_documents(problems) == []


def test_the_glossary_uses_names_of_the_code() -> None:
    words = {word for source in sources("ifed", "services") for word in re.findall(r"\w+", source.text)} | promises.setting_names()
    rows = [row for row in documents.document("docs/glossary.md").rows() if row[0] != "term"]
    names = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[-2]) if not name.endswith(".py")}
    assert sorted(name for name in names if not set(name.split(".")) <= words) == []
    terms = [row[0] for row in rows]
    assert len(terms) == len(set(terms)), "a term stands twice"


def test_no_placeholder_is_left() -> None:
    assert of_documents(lambda document: iter(documents.PLACEHOLDER.findall(document.text))) == []


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


def test_a_document_is_read_for_what_it_promises() -> None:
    text = (
        "# A *b* `c`: d\n\n[x](y.md#z) `ifed task list`\n\n```bash\n# no\n$ make test \\\n  ARGS=1\n[no](no.md)\n```\n\n"
        "## T\n\n| a | b |\n|---|---|\n| `X` | 1 |\n"
    )
    document = Document("x.md", text)
    assert document.links == ["y.md#z"]
    assert document.anchors == {"a-b-c-d", "t"}
    assert document.shell == ["make test  ARGS=1", "[no](no.md)"]
    assert document.rows("T") == [("a", "b"), ("`X`", "1")]
    assert list(documents.made(document)) == ["test"]
    assert documents.anchor("`make demo`, step by step") == "make-demo-step-by-step"
    assert documents.make_targets("all: x\n.venv/x: y\n\tz\nlint:\n") == {"all", "lint"}


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
