"""The check of a webhook's address sees what is connected to."""

from __future__ import annotations

import pytest

from ifed.clients.transport import retry_after_seconds
from ifed.clients.webhooks import WebhookCaller, check_url
from ifed.errors import BadUrl

INSIDE = [
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "127.1",
    "127.0.0.1.",
    "127。0。0。1",
    "１２７.0.0.1",
    "localhost.",
    "api.localhost",
    "[::ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fe80::1%25eth0]",
    "[fd00::1]",
    "[ff0e::1]",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "100.64.0.1",
    "3232235777",
]


@pytest.mark.parametrize("host", INSIDE)
def test_no_spelling_of_an_address_that_is_not_public_passes(host: str) -> None:
    with pytest.raises(BadUrl, match=r"private network|no URL"):
        check_url(f"http://{host}:8080/hook", private=False)


@pytest.mark.parametrize(
    "host", ["hooks.example.org", "93.184.216.34", "[2606:2800:220:1::1]", "[64:ff9b::93.184.216.34]", "1.2.3.4.5"]
)
def test_public_addresses_and_names_pass(host: str) -> None:
    assert check_url(f"https://{host}/hook", private=False).path == "/hook"


@pytest.mark.parametrize(
    ("value", "seconds"), [("120", 120.0), ("\xb2", None), ("٣", None), ("", None), ("1.5", None), ("9" * 5000, 86_400.0)]
)
def test_a_retry_after_that_is_no_number_is_ignored_and_a_long_one_is_cut(value: str, seconds: float | None) -> None:
    assert retry_after_seconds(value) == seconds


async def test_whatever_goes_wrong_in_a_post_is_its_outcome() -> None:
    async def broken(_host: str) -> list[str]:
        raise UnicodeError("label too long")

    caller = WebhookCaller(timeout=1.0, private=False, resolver=broken)
    answer = await caller.post("https://hooks.example.org/", b"{}", {})
    assert (answer.status, answer.error) == (None, "UnicodeError")
    await caller.close()
