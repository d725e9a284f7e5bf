"""`ifed client enrol … --file` against an aggregator on a port: a token that is kept, and one that had to be made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifed.clients import AggregatorClient
from ifed.errors import AlreadyExists, Unauthenticated
from tests.integration.aggregator.conftest import CommandLine


async def speaks_for(ifed: CommandLine, token: str) -> str:
    async with AggregatorClient(ifed.url) as anyone:
        return (await anyone.whose(token)).name


async def test_a_token_goes_to_a_file_of_its_owner_and_not_to_the_terminal(ifed: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "token"
    output = await ifed("client", "enrol", "north", "--output", str(file))
    token = file.read_text().strip()
    assert await speaks_for(ifed, token) == "north"
    assert token not in output
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_token_that_holds_is_left_as_it_is(ifed: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "token"
    await ifed("client", "enrol", "north", "--file", str(file))
    token = file.read_text()
    for words in ((), ("--replace",)):
        await ifed("client", "enrol", "north", "--file", str(file), *words)
        assert file.read_text() == token


async def test_a_rotated_token_and_a_webhooks_secret_go_to_files_of_their_owner(ifed: CommandLine, tmp_path: Path) -> None:
    token, secret = tmp_path / "token", tmp_path / "secret"
    token.write_text("a lost one")
    token.chmod(0o644)
    await ifed("client", "enrol", "north", "--quiet")
    output = await ifed("client", "rotate", "north", "--output", str(token))
    output += await ifed("webhook", "add", "pager", "https://hooks.example.org", "--output", str(secret))
    assert await speaks_for(ifed, token.read_text().strip()) == "north"
    assert secret.read_text().startswith("whsec_")
    assert [file.stat().st_mode & 0o777 for file in (token, secret)] == [0o600, 0o600]
    assert not any(file.read_text().strip() in output for file in (token, secret))


@pytest.mark.parametrize("left", [None, "ifed_of-another-database"])
async def test_a_lost_token_is_made_anew_only_when_asked(ifed: CommandLine, tmp_path: Path, left: str | None) -> None:
    file = tmp_path / "token"
    await ifed("client", "enrol", "north", "--file", str(file))
    lost = file.read_text().strip()
    file.unlink() if left is None else file.write_text(left)
    with pytest.raises(AlreadyExists):
        await ifed("client", "enrol", "north", "--file", str(file))
    await ifed("client", "enrol", "north", "--file", str(file), "--replace")
    assert await speaks_for(ifed, file.read_text().strip()) == "north"
    with pytest.raises(Unauthenticated):
        await speaks_for(ifed, lost)


async def test_a_token_of_another_party_is_not_taken_for_ones_own(ifed: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "token"
    await ifed("client", "enrol", "south", "--file", str(file))
    await ifed("client", "enrol", "north", "--file", str(file))
    assert await speaks_for(ifed, file.read_text().strip()) == "north"
