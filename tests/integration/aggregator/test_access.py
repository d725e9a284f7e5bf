"""Getting in, being counted and being written down: enrolment codes, the audit, limits, HTTPS; on both stacks where storage decides."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ifed.clients import AggregatorClient
from ifed.errors import Overloaded, Unauthenticated
from ifed.messages.enums import Role
from ifed.server.authentication import CONCURRENT_ATTEMPTS
from services.aggregator.runtime.rate_limit import RateLimiter
from services.aggregator.settings import Settings
from services.aggregator.storage.database import connect
from testing.factories import ADMIN_TOKEN, context_body, join_request, spec
from testing.processes import Process
from testing.servers import free_port
from tests.integration.aggregator.deployment import PATIENCE, TASK, Deployment, deployed, settings
from tests.integration.aggregator.listening import listening

INVITATION = {"name": "hospital-a", "valid_seconds": 60}


async def test_a_code_is_traded_for_a_token_once(aggregator: Deployment) -> None:
    made = await aggregator.raw("POST", "/v1/enrolments", json=INVITATION)
    assert made.status_code == 201
    code = {"code": made.json()["code"]}
    trades = await asyncio.gather(*(aggregator.raw("POST", "/v1/enrol", token=None, json=code) for _ in range(4)))
    assert sorted(answer.status_code for answer in trades) == [201, 401, 401, 401]
    enrolled = next(answer.json() for answer in trades if answer.status_code == 201)
    assert (enrolled["name"], enrolled["role"]) == ("hospital-a", "client")
    lines = (await aggregator.raw("GET", "/v1/audit")).json()["items"]
    assert [line["actor"] for line in lines if line["action"] == "POST /v1/enrol"] == ["hospital-a"], (
        "written with the enrolment, once"
    )
    assert lines[-1]["request_id"]
    assert (await aggregator.raw("GET", f"/v1/tasks/{TASK}/assignment", token=enrolled["token"])).status_code == 404


async def test_a_code_for_a_name_that_was_taken_meanwhile_stays_good(aggregator: Deployment) -> None:
    code = {"code": (await aggregator.raw("POST", "/v1/enrolments", json=INVITATION)).json()["code"]}
    await aggregator.admin.enrol("hospital-a")
    for _ in range(2):
        answer = await aggregator.raw("POST", "/v1/enrol", token=None, json=code)
        assert (answer.status_code, answer.json()["error"]) == (409, "AlreadyExists")


async def test_what_an_admin_asks_for_is_in_the_audit_even_when_it_is_refused(aggregator: Deployment) -> None:
    await aggregator.raw("POST", f"/v1/tasks/{TASK}/start", headers={"X-Request-ID": "0123456789abcdef0123456789abcdef"})
    await aggregator.admin.enrol("a")
    lines = (await aggregator.raw("GET", "/v1/audit")).json()["items"]
    assert [(line["actor"], line["action"], line["target"]) for line in lines] == [
        ("admin", "POST /v1/tasks/{task}/start", f"/v1/tasks/{TASK}/start"),
        ("admin", "POST /v1/clients", "/v1/clients"),
    ]
    assert lines[0]["request_id"] == "0123456789abcdef0123456789abcdef"
    rest = (await aggregator.raw("GET", f"/v1/audit?after={lines[0]['number']}&limit=1")).json()
    assert [line["number"] for line in rest["items"]] == [lines[1]["number"]]


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"])
async def test_the_database_refuses_to_change_the_audit(aggregator: Deployment, stack: Settings, statement: str) -> None:
    await aggregator.admin.enrol("a")
    database = connect(stack.database_url)
    with pytest.raises(DBAPIError, match="the audit only grows"):
        async with database.engine.begin() as connection:
            await connection.execute(text(statement))
    await database.close()
    assert len((await aggregator.raw("GET", "/v1/audit")).json()["items"]) == 1


async def test_a_client_that_calls_too_often_is_told_when_to_come_again_on_every_replica(stack: Settings) -> None:
    configuration = settings(stack.database_url, redis_url=stack.redis_url, redis_prefix=stack.redis_prefix, requests_per_minute=3)
    async with deployed(configuration) as first, deployed(configuration) as second:
        await first.started()
        client = await first.client("a")
        token = client._http.headers["Authorization"].removeprefix("Bearer ")
        shared = [first, second] if stack.redis_url else [first, first]
        answers = [await replica.raw("GET", f"/v1/tasks/{TASK}/assignment", token=token) for replica in shared * 3]
        codes = [answer.status_code for answer in answers]
        assert codes[:1] == [200]
        assert 429 in codes[3:]  # a minute may end in between, so not all of them
        refused = answers[codes.index(429)]
        assert refused.json()["error"] == "Overloaded"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        other = await first.client("b")
        assert (await other.assignment(TASK)).kind == "join", "one client's calls are not another's"


async def test_requests_that_wait_for_an_adapter_are_counted_apart(stack: Settings) -> None:
    configuration = settings(stack.database_url, redis_url=stack.redis_url, redis_prefix=stack.redis_prefix, requests_per_minute=3)
    async with deployed(configuration) as replica:
        await replica.started()
        reader = (await replica.admin.enrol("reader", Role.READER)).token
        paths = [f"/v1/tasks/unknown/adapter?wait={wait}" for wait in (0, 0.01)]
        looked_up = [(await replica.raw("GET", paths[0], token=reader)).status_code for _ in range(8)]
        assert 429 in looked_up
        followed = [(await replica.raw("GET", paths[1], token=reader)).status_code for _ in range(3)]
        assert followed == [404] * 3, "look-ups of names cannot stop a service from following what it serves"


async def test_a_client_called_admin_does_not_use_up_the_admins_calls(sqlite_database: str) -> None:
    async with deployed(settings(sqlite_database, requests_per_minute=3)) as aggregator:
        await aggregator.started()
        namesake = await aggregator.client("admin")
        calls = [namesake.assignment(TASK) for _ in range(7)]  # a minute may end in between
        assert any(isinstance(answer, Overloaded) for answer in await asyncio.gather(*calls, return_exceptions=True))
        assert (await aggregator.raw("GET", f"/v1/tasks/{TASK}/context")).status_code == 404


async def test_an_address_that_guesses_is_throttled_and_those_it_shares_the_address_with_are_not(sqlite_database: str) -> None:
    async with deployed(settings(sqlite_database, failed_attempts_per_minute=5)) as aggregator:
        await aggregator.started()
        known = await aggregator.client("a")
        await known.assignment(TASK)
        guesses = [aggregator.raw("GET", "/v1/token", token=f"ifed_guess-{number}") for number in range(40)]
        answers = await asyncio.gather(*guesses)
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {401, 429}
        assert codes.count(401) <= 2 * (5 + CONCURRENT_ATTEMPTS)  # a minute may end in between
        assert 1 <= int(answers[codes.index(429)].headers["Retry-After"]) <= 60
        await known.assignment(TASK)
        assert (await aggregator.raw("GET", "/v1/tasks")).status_code == 200, "the admin's token is not looked up"
        shown = (await aggregator.raw("GET", "/metrics", token=None)).text
        assert 'ifed_failed_authentications_total{kind="token",outcome="throttled"}' in shown


async def test_codes_that_begin_alike_are_counted_together_from_whatever_address(sqlite_database: str) -> None:
    async with deployed(settings(sqlite_database, failed_attempts_per_minute=5)) as aggregator:
        access = aggregator.app.state.services.access
        guesses = [access.redeem(f"enrol_ABCD{number}", address=f"192.0.2.{number}") for number in range(40)]
        answers = await asyncio.gather(*guesses, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Unauthenticated, Overloaded}
        code = (await aggregator.raw("POST", "/v1/enrolments", json=INVITATION)).json()["code"]
        assert (await access.redeem(code, address="192.0.2.1")).name == "hospital-a"


async def test_the_callers_address_comes_from_a_trusted_proxy_alone(sqlite_database: str) -> None:
    for trusted, throttled in (("", True), ("127.0.0.1", False)):
        configuration = settings(sqlite_database, failed_attempts_per_minute=2, trusted_proxies=trusted)
        async with listening(configuration) as aggregator, httpx.AsyncClient(base_url=aggregator.url) as http:
            codes = []
            for number in range(9):
                headers = {"Authorization": "Bearer ifed_wrong", "X-Forwarded-For": f"10.0.0.1, 198.51.100.{number}"}
                codes.append((await http.get("/v1/token", headers=headers)).status_code)
            assert (429 in codes) is throttled


async def test_without_redis_calls_are_counted_in_the_process() -> None:
    rates = RateLimiter(2, "redis://127.0.0.1:1/0", "ifed")
    calls = await asyncio.gather(*(rates.check("a", role="client") for _ in range(5)), return_exceptions=True)
    assert any(isinstance(answer, Overloaded) for answer in calls)


async def test_no_secret_and_no_body_reaches_the_log_at_its_most_talkative(tmp_path: Path) -> None:
    process = Process(tmp_path, LOG_LEVEL="DEBUG")
    try:
        await asyncio.to_thread(process.start)
        async with httpx.AsyncClient(base_url=process.url, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as http:
            code = (await http.post("/v1/enrolments", json=INVITATION)).json()["code"]
            token = (await http.post("/v1/enrol", json={"code": code})).json()["token"]
            path = f"/v1/tasks/{TASK}/rounds/1/context"
            await http.put(path, content=context_body(), headers={"Authorization": f"Bearer {token}"})
            await http.post("/v1/tasks", json={"name": TASK, "template": "the secret text {text}"})
            hook = {"name": "pager", "url": "https://hooks.example.invalid/path-secret"}
            signs = (await http.post("/v1/webhooks", json=hook)).json()["secret"]
            await http.post("/v1/tasks", json=spec().model_dump(mode="json"))
            while not (await http.get("/v1/webhooks/pager/deliveries")).json()["items"][0]["attempts"]:
                await asyncio.sleep(0.05)
        logged = process.log()
    finally:
        process.close()
    assert "invited" in logged
    for secret in (ADMIN_TOKEN, code, token, signs, "path-secret", "the secret text", "safetensors", "[1.0"):
        assert secret not in logged


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate for the test")
    made, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    options = [
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run([openssl, "req", *options, "-keyout", key, "-out", made], check=True, capture_output=True)
    return made, key


async def test_with_a_certificate_it_speaks_https(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    made, key = certificate
    process = Process(tmp_path, TLS_CERTIFICATE_FILE=str(made), TLS_KEY_FILE=str(key))
    process.url = process.url.replace("http://", "https://")
    process.trust = ssl.create_default_context(cafile=str(made))
    try:
        await asyncio.to_thread(process.start)
        async with httpx.AsyncClient(verify=process.trust) as http:
            assert (await http.get(f"{process.url}/livez")).json() == {"status": "ok"}
    finally:
        process.close()


def test_half_of_tls_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go together"):
        settings("sqlite:///unused", tls_key_file=tmp_path / "tls.key")


async def test_held_requests_are_counted_while_they_are_held(embedded: Deployment) -> None:
    await embedded.started()
    client = await embedded.client("a")
    await client.join_task()
    long_poll = asyncio.create_task(client.assignment(TASK, wait=20))
    async with asyncio.timeout(5):
        while f'ifed_long_polls{{task="{TASK}"}} 1.0' not in (await embedded.raw("GET", "/metrics", token=None)).text:
            await asyncio.sleep(0.02)
    await embedded.app.state.services.dependencies.long_poll.close()
    await long_poll
    assert "ifed_long_polls{" not in (await embedded.raw("GET", "/metrics", token=None)).text


async def test_a_request_that_its_caller_abandons_is_not_held_any_longer(sqlite_database: str) -> None:
    async with listening(settings(sqlite_database)) as aggregator, aggregator.admin() as admin:
        await admin.create_task(spec(TASK))
        token = (await admin.enrol("a")).token
        await admin.start(TASK)
        async with AggregatorClient(aggregator.url, token) as client, httpx.AsyncClient(base_url=aggregator.url) as http:
            await client.join(TASK, join_request())
            headers = {"Authorization": f"Bearer {token}"}
            with pytest.raises(httpx.ReadTimeout):
                await http.get(f"/v1/tasks/{TASK}/assignment?wait=60", headers=headers, timeout=1)
            async with asyncio.timeout(10):
                while "ifed_long_polls{" in (await http.get("/metrics")).text:
                    await asyncio.sleep(0.05)


async def test_an_admin_is_answered_while_requests_are_held_and_streams_beyond_the_limit_end(sqlite_database: str) -> None:
    async with deployed(settings(sqlite_database, max_held_requests_of_party=20)) as aggregator:
        await aggregator.started(clients_expected=5)
        (client,) = await aggregator.clients("a")
        long_polls = [asyncio.create_task(client.assignment(TASK, wait=30)) for _ in range(60)]
        streams = [asyncio.create_task(aggregator.raw("GET", "/v1/events")) for _ in range(25)]
        ended, _ = await asyncio.wait(long_polls, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        began = time.monotonic()
        assert (await aggregator.raw("GET", "/v1/tasks")).status_code == 200
        assert time.monotonic() - began < 3
        async with asyncio.timeout(PATIENCE):
            while sum(task.done() for task in long_polls) < 40 or sum(task.done() for task in streams) < 5:
                await asyncio.sleep(0.05)
        assert ended
        assert sum(task.done() for task in long_polls) == 40
        await aggregator.app.state.services.dependencies.long_poll.close()
        await asyncio.gather(*long_polls, *streams)


async def test_metrics_have_a_port_of_their_own_and_the_description_is_off_where_settings_say_so(sqlite_database: str) -> None:
    configuration = settings(sqlite_database, metrics_port=free_port(), docs=False)
    async with deployed(configuration) as aggregator, httpx.AsyncClient() as http:
        for path in ("/metrics", "/docs", "/redoc", "/openapi.json"):
            assert (await aggregator.raw("GET", path)).status_code == 404
        shown = await http.get(f"http://127.0.0.1:{configuration.metrics_port}/metrics")
    assert "ifed_failed_authentications" in shown.text


async def test_metrics_tell_of_each_task_what_its_operators_watch(embedded: Deployment) -> None:
    await embedded.started(clients_expected=1, rounds=1)
    (client,) = await embedded.clients("a")
    await client.run()
    for _ in range(2):
        await client.adapter(TASK)
    shown = (await embedded.raw("GET", "/metrics", token=None)).text
    for kind in ("context", "calibration", "evaluation"):
        for state in ("open", "closed"):
            assert f'ifed_rounds_total{{kind="{kind}",state="{state}",task="{TASK}"}} 1.0' in shown
        assert f'ifed_contributions_total{{kind="{kind}",task="{TASK}"}} 1.0' in shown
    assert f'ifed_aggregation_seconds_count{{task="{TASK}"}} 3.0' in shown
    for outcome in ("hit", "miss"):
        assert f'ifed_cache_reads_total{{outcome="{outcome}",task="{TASK}"}}' in shown
    stored = sum(entry.bytes for entry in await embedded.admin.ledger(TASK))
    assert f'ifed_contribution_bytes_total{{task="{TASK}"}} {float(stored)}' in shown
