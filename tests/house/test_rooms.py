"""Who may import what: the room table of the architecture page, held against the code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

import pytest

from tests.house import rules
from tests.house.holding import below, hold, matching
from tests.house.sources import CODE, ROOT, Source, files_matching, reached_from, sources

WEB = ("fastapi", "starlette", "uvicorn")
SQL = ("sqlalchemy", "alembic", "asyncpg", "aiosqlite", "sqlite3")
TORCH = ("torch", "transformers", "accelerate", "gguf", "tokenizers")
SERVICES = ("aggregator", "client_agent", "inference")


def aggregator(*names: str) -> tuple[str, ...]:
    """Files of the aggregator."""
    return tuple(f"services/aggregator/{name}" for name in names)


PURE = aggregator(
    "domain.py",
    "contribution.py",
    "aggregation.py",
    "combination.py",
    "robust.py",
    "server_optimizers.py",
    "sampling.py",
    "sketches.py",
    "plan.py",
)
TIMELESS = aggregator(
    "tally.py", "task_changes.py", "views.py", "records.py", "ports.py", "opening.py", "intake.py", "happenings.py"
)
STORAGE = aggregator("tables.py", "tables_*.py", "repository.py", "stored_*.py", "constraints.py", "migrate.py", "migrations/**")
CACHE = aggregator("cache.py")
ENDPOINTS = ("services/*/endpoints.py", "services/*/endpoints_*.py")
ROUTES = tuple(
    source.path for source in files_matching(*ENDPOINTS) if any(found.name == "fastapi.APIRouter" for found in source.imports)
)
APP = ("services/*/app.py",)
SETTINGS = ("services/*/settings.py",)
MODEL_SIDE = ("services/client_agent/worker.py", "services/inference/scorer.py")
NOT_SERVICE = (*PURE, *STORAGE, *CACHE, *ENDPOINTS, *APP, *SETTINGS, *MODEL_SIDE)
SERVICE_SIDE = tuple(source.path for source in files_matching("services/*/*.py") if not source.in_files(*NOT_SERVICE))

# A library and the only files that may import it. Everything else asks the room that owns it.
WALLS = {
    "torch and what loads models": (TORCH, ("ifed/modeling/**",)),
    "the language model": (
        ("ifed.modeling",),
        ("ifed/modeling/**", "ifed/identity.py", *MODEL_SIDE, "ifed/cli/models.py", "ifed/cli/export.py", "ifed/exporting.py"),
    ),
    "the web framework": (("fastapi", "starlette"), (*APP, *ENDPOINTS, "ifed/web.py")),
    "the web server": (("uvicorn",), APP),
    "SQL": (SQL, STORAGE),
    "Redis": (("redis",), CACHE),
    "settings from the environment": (("pydantic_settings",), SETTINGS),
    "the terminal": (("typer", "rich", "click"), ("ifed/cli/**",)),
    "HTTP to other services": (("httpx",), ("ifed/clients/**", "ifed/cli/demo/**")),
}


def trespasses(wall: str, found: Iterable[Source]) -> list[str]:
    """Imports of a library by files outside the rooms that own it."""
    libraries, rooms = WALLS[wall]
    remedy = f"{wall} belongs to {', '.join(rooms)}; ask that room, or hand the result in from app.py"
    outside = [source for source in found if not source.in_files(*rooms)]
    return [words for source in outside for words in rules.forbidden_imports(source, libraries, remedy=remedy)]


@pytest.mark.parametrize("wall", WALLS)
def test_a_library_is_imported_only_in_the_room_that_owns_it(wall: str) -> None:
    hold(trespasses(wall, sources(*CODE)))


@matching(*PURE)
def test_the_domain_knows_only_numbers_states_and_refusals(source: Source) -> None:
    siblings = {path.removesuffix(".py").replace("/", ".") for path in PURE}
    allowed = rules.PURE_STDLIB | {"numpy", "ifed.tensors", "ifed.compact", "ifed.errors", "ifed.states"} | siblings
    hold(rules.imports_beyond(source, allowed, remedy="pass what it needs in as a value") + rules.impure_calls(source))


@matching(*TIMELESS)
def test_what_says_it_knows_no_clock_reads_none(source: Source) -> None:
    clocks = ("time", "random", "secrets", "uuid", "asyncio", "threading", "numpy.random")
    hold(rules.forbidden_imports(source, clocks, remedy="the time is passed in; backstage.py has it") + rules.impure_calls(source))


@matching(*SERVICE_SIDE)
def test_a_service_knows_its_storage_cache_and_engine_as_protocols(source: Source) -> None:
    own = source.module.rsplit(".", 1)[0]
    others = [
        f"{own}.{name}" for name in ("app", "endpoints", "settings", "tables", "repository", "constraints", "migrate", "cache")
    ]
    if not source.path.endswith("/engine.py"):
        others.append(f"{own}.engine.Engine")
    stored = [found.name for found in source.imports if found.under(own) and ".stored_" in found.name]
    hold(rules.forbidden_imports(source, [*others, *stored], remedy="name a Protocol instead; app.py hands the implementation in"))


@matching(*STORAGE)
def test_storage_knows_no_web_no_cache_and_no_service(source: Source) -> None:
    own = [f"services.aggregator.{name}" for name in ("app", "endpoints", "service", "cache")]
    others = [*WEB, "httpx", "redis", *TORCH, "ifed.clients", "ifed.web", "ifed.modeling", *own]
    hold(rules.forbidden_imports(source, others, remedy="storage keeps and finds; decide in the domain, speak HTTP in endpoints"))


@matching(*CACHE)
def test_the_cache_is_never_the_truth(source: Source) -> None:
    truth = [
        *SQL,
        *(f"services.aggregator.{name}" for name in ("tables", "repository", "constraints", "service", "app", "endpoints")),
    ]
    hold(rules.forbidden_imports(source, truth, remedy="the service reads the truth and then tells the cache"))


@matching(*ENDPOINTS)
def test_the_web_side_reaches_the_rest_through_the_service(source: Source) -> None:
    own = source.module.rsplit(".", 1)[0]
    names = (
        "app",
        "settings",
        "tables",
        "repository",
        "constraints",
        "cache",
        "engine",
        "domain",
        "contribution",
        "aggregation",
        "plan",
    )
    others = [*SQL, *TORCH, "redis", "httpx", "numpy", "os", "ifed.modeling", "ifed.clients", *(f"{own}.{name}" for name in names)]
    hold(rules.forbidden_imports(source, others, remedy="call the service"))


@matching(*ROUTES)
def test_an_endpoint_parses_calls_and_returns(source: Source) -> None:
    hold(rules.error_handling(source) + rules.arithmetic(source))


@matching(*SETTINGS)
def test_settings_know_nothing_of_ours(source: Source) -> None:
    hold(rules.forbidden_imports(source, CODE, remedy="settings are plain values; convert them in app.py"))


@matching("ifed/modeling/**")
def test_the_torch_room_knows_no_network_no_database_and_no_environment(source: Source) -> None:
    others = [*WEB, *SQL, "httpx", "redis", "requests", "urllib.request", "ifed.clients", "ifed.web", "ifed.cli", "ifed.bodies"]
    remedy = "the model's room takes values and gives values; the services and ifed.packages speak to the network"
    hold(rules.forbidden_imports(source, others, remedy=remedy) + rules.environment_reads(source))


@matching("ifed/**")
def test_the_library_never_imports_a_service(source: Source) -> None:
    hold(rules.forbidden_imports(source, ["services"], remedy="what two services need is in ifed, the rest stays in its service"))


@matching(
    *(
        f"ifed/{name}.py"
        for name in (
            "states",
            "errors",
            "tensors",
            "rules",
            "tasks",
            "contracts",
            "history",
            "serving",
            "serving_errors",
            "bodies",
            "label_bias",
        )
    )
)
def test_the_shared_values_know_no_framework_and_no_service(source: Source) -> None:
    others = [*WEB, *SQL, *TORCH, "httpx", "redis", "typer", "rich", "os", "ifed.clients", "ifed.web", "ifed.cli", "ifed.modeling"]
    hold(rules.forbidden_imports(source, others, remedy="these files are what everyone imports; keep them plain"))


@pytest.mark.parametrize("service", SERVICES)
def test_services_never_import_each_other(service: str) -> None:
    others = [f"services.{other}" for other in SERVICES if other != service]
    remedy = "services meet over HTTP alone; put shared messages into ifed"
    hold(
        [
            words
            for source in files_matching(f"services/{service}/**")
            for words in rules.forbidden_imports(source, others, remedy=remedy)
        ]
    )


def test_every_service_is_in_the_room_table() -> None:
    found = {path.parent.name for path in (ROOT / "services").glob("*/__init__.py")}
    assert found == set(SERVICES), "name the new service in SERVICES and on the architecture page"


@matching("services/*/*.py")
def test_no_one_imports_the_app_that_joins_them(source: Source) -> None:
    apps = [f"services.{service}.app" for service in SERVICES]
    hold(rules.forbidden_imports(source, apps, remedy="app.py builds things and hands them down; take them as arguments"))


@below(*CODE)
def test_the_environment_is_read_in_settings_and_on_the_command_line_alone(source: Source) -> None:
    if not source.in_files(*SETTINGS, "ifed/cli/**"):
        hold(rules.environment_reads(source, with_reason=True))


def test_the_aggregator_never_imports_torch() -> None:
    reached = reached_from("services.aggregator.app")
    found = {name: where for name, where in reached.items() if name.split(".")[0] in TORCH}
    assert not found, f"the aggregator's image has no torch; take these imports out of what the aggregator imports: {found}"


def test_the_aggregator_starts_where_torch_is_not_installed() -> None:
    program = f"import sys\nfor name in {TORCH!r}: sys.modules[name] = None\nimport services.aggregator.app"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the aggregator needs something its image does not have:\n{done.stderr[-2000:]}"
