"""Every route with every role: admin, client, reader and strangers never mix."""

from __future__ import annotations

import asyncio

import pytest

from ifed.errors import Forbidden, Unauthenticated
from ifed.messages.enums import Role
from testing.factories import ADMIN_TOKEN
from tests.integration.aggregator.deployment import PATIENCE, TASK, Deployment

ADMIN, CLIENT, READER = Role.ADMIN, Role.CLIENT, Role.READER
EVERYONE = {ADMIN, CLIENT, READER}
ALLOWED: dict[str, set[Role]] = {
    "POST /v1/tasks": {ADMIN},
    "GET /v1/tasks": {ADMIN},
    "GET /v1/tasks/{task}": {ADMIN},
    "PATCH /v1/tasks/{task}": {ADMIN},
    "DELETE /v1/tasks/{task}": {ADMIN},
    "POST /v1/tasks/{task}/start": {ADMIN},
    "POST /v1/tasks/{task}/pause": {ADMIN},
    "POST /v1/tasks/{task}/resume": {ADMIN},
    "GET /v1/tasks/{task}/rounds": {ADMIN},
    "GET /v1/tasks/{task}/rounds/{number}": {ADMIN},
    "POST /v1/tasks/{task}/rounds/{number}/close": {ADMIN},
    "POST /v1/tasks/{task}/rounds/{number}/cancel": {ADMIN},
    "POST /v1/tasks/{task}/rounds/{number}/extend": {ADMIN},
    "POST /v1/tasks/match": {ADMIN},
    "POST /v1/tasks/{task}/rollback": {ADMIN},
    "GET /v1/tasks/{task}/ledger": {ADMIN},
    "GET /v1/tasks/{task}/evaluations/{version}": {ADMIN},
    "GET /v1/tasks/{task}/rounds/{number}/replay": {ADMIN},
    "POST /v1/clients": {ADMIN},
    "GET /v1/clients": {ADMIN},
    "DELETE /v1/clients/{client}": {ADMIN},
    "POST /v1/clients/{client}/rotate": {ADMIN},
    "POST /v1/enrolments": {ADMIN},
    "GET /v1/audit": {ADMIN},
    "GET /v1/events": {ADMIN},
    "POST /v1/webhooks": {ADMIN},
    "GET /v1/webhooks": {ADMIN},
    "DELETE /v1/webhooks/{webhook}": {ADMIN},
    "GET /v1/webhooks/{webhook}/deliveries": {ADMIN},
    "GET /v1/token": EVERYONE,
    "GET /v1/tasks/{task}/contexts": {ADMIN},
    "GET /v1/tasks/{task}/contexts/{version}/replay": {ADMIN},
    "POST /v1/tasks/{task}/clients/{client}/withdraw": {ADMIN},
    "POST /v1/tasks/{task}/join": {CLIENT},
    "POST /v1/tasks/{task}/context": {CLIENT},
    "POST /v1/tasks/{task}/withdraw": {CLIENT},
    "GET /v1/tasks/{task}/assignment": {CLIENT},
    "PUT /v1/tasks/{task}/rounds/{number}/context": {CLIENT},
    "PUT /v1/tasks/{task}/rounds/{number}/update": {CLIENT},
    "GET /v1/tasks/{task}/rounds/{number}/query": {CLIENT},
    "PUT /v1/tasks/{task}/rounds/{number}/head": {CLIENT},
    "GET /v1/tasks/{task}/context": EVERYONE,
    "GET /v1/tasks/{task}/coefficients": EVERYONE,
    "GET /v1/tasks/{task}/adapter": EVERYONE,
}


# Who holds an enrolment code has no token yet.
NO_TOKEN = {"POST /v1/enrol"}
# A stream would not end; whoever is let in is told that this is no number.
WRONGLY = {"GET /v1/events": "?after=-1"}


async def test_every_route_is_in_the_table_of_roles(embedded: Deployment) -> None:
    paths = embedded.app.openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert {route for route in routes if " /v1/" in route} == set(ALLOWED) | NO_TOKEN


async def test_a_token_opens_the_routes_of_its_role_and_no_other(embedded: Deployment) -> None:
    await embedded.started()
    tokens: dict[Role | str | None, str | None] = {ADMIN: ADMIN_TOKEN, "stranger": "ifed_unknown", None: None}
    for role in (CLIENT, READER):
        tokens[role] = (await embedded.admin.enrol(f"party-{role}", role)).token
    mixed = []
    for route, allowed in ALLOWED.items():
        method, path = route.split()
        for role, token in tokens.items():
            # Names that exist nowhere: whoever is let in finds nothing, or a malformed body, and changes nothing.
            url = path.format(task="nowhere", number=1, version=1, client="nobody", webhook="none")
            answer = await embedded.raw(method, url + WRONGLY.get(route, ""), token=token)
            let_in = answer.status_code not in (Unauthenticated.status, Forbidden.status)
            refused = Forbidden if isinstance(role, Role) else Unauthenticated
            if let_in is not (role in allowed) or (not let_in and answer.json()["error"] != refused.__name__):
                mixed.append(f"{route} as {role}: {answer.status_code} {answer.text[:80]}")
    assert mixed == []


async def test_a_refused_caller_learns_how_to_authenticate(embedded: Deployment) -> None:
    answer = await embedded.raw("GET", "/v1/tasks", token=None)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_revoked_token_ends_at_once_and_its_name_is_not_given_again(aggregator: Deployment) -> None:
    await aggregator.started()
    client = await aggregator.client("a")
    await client.join_task()
    await aggregator.admin.revoke("a")
    await aggregator.admin.revoke("a")
    with pytest.raises(Unauthenticated):
        await client.assignment(TASK)
    answer = await aggregator.raw("POST", "/v1/clients", json={"name": "a"})
    assert (answer.status_code, answer.json()["error"]) == (409, "AlreadyExists")
    assert (await aggregator.raw("POST", "/v1/clients/a/rotate")).json()["error"] == "WrongState"


async def test_a_rotated_token_ends_the_old_one(aggregator: Deployment) -> None:
    await aggregator.started()
    old = await aggregator.client("a")
    new = (await aggregator.admin.rotate("a")).token
    with pytest.raises(Unauthenticated):
        await old.assignment(TASK)
    assert (await aggregator.raw("GET", f"/v1/tasks/{TASK}/assignment", token=new)).json()["kind"] == "join"


async def test_only_the_hash_of_a_token_is_kept(embedded: Deployment) -> None:
    client = await embedded.client("a")
    token = client._http.headers["Authorization"].removeprefix("Bearer ")
    database = embedded.app.state.services.dependencies.database
    async with database.read_only() as work:
        kept = await work.parties.get("a")
    assert token not in str(kept)
    assert token not in (await embedded.raw("GET", "/v1/clients")).text


async def test_a_party_is_seen_when_it_calls(embedded: Deployment) -> None:
    client = await embedded.client("a")
    await embedded.started()
    assert (await embedded.admin.enrolled())[0].last_seen_at is None
    await client.assignment(TASK)
    async with asyncio.timeout(PATIENCE):
        while (await embedded.admin.enrolled())[0].last_seen_at is None:  # written for many together, at the next tick
            await asyncio.sleep(0.02)
