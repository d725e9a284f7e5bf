"""Posts to webhook addresses, with the check that they are not inside this network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from ifed.errors import BadUrl


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """The outcome of a post.

    Attributes:
        status: the HTTP status; None if there was no response.
        error: what went wrong; None if the status is a success.
        retry_after: the seconds that the receiver asked to wait.
    """

    status: int | None
    error: str | None = None
    retry_after: float | None = None


class WebhookCaller:
    """Posts to webhooks over one connection pool. It follows no redirects and uses no proxy of the environment.

    Args:
        timeout: seconds for one post, from connecting to the end of the response.
        private: whether receivers may be on this machine or in a private network.
    """

    def __init__(self, *, timeout: float, private: bool) -> None:
        self._timeout, self._private = timeout, private
        self._http = httpx.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        """Send once. Errors are reported in the answer, without the address."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._check_addresses(url)
                async with self._http.stream("POST", url, content=body, headers=headers) as response:
                    return _answer(response)
        except BadUrl as refusal:
            return WebhookResponse(None, refusal.detail)
        except TimeoutError:
            return WebhookResponse(None, f"no answer within {self._timeout:g} seconds")
        except (httpx.HTTPError, OSError) as reason:
            return WebhookResponse(None, type(reason).__name__)

    async def _check_addresses(self, url: str) -> None:
        """Resolve the host and refuse private addresses, which a host name may point to."""
        check_url(url, private=self._private)
        if self._private:
            return
        found = await asyncio.get_running_loop().getaddrinfo(host_of(url), None, type=socket.SOCK_STREAM)
        if any(is_inside(str(address[4][0])) for address in found):
            raise BadUrl("the host's name leads to this machine or into a private network")


def check_url(url: str, *, private: bool) -> None:
    """Check the address of a webhook.

    Raises:
        BadUrl: the address is not allowed; the message says why.
    """
    host = host_of(url)
    if not private and (host.lower().rstrip(".") == "localhost" or is_inside(host)):
        raise BadUrl(f"{host} is on this machine or in a private network; WEBHOOK_PRIVATE_ADDRESSES=true lets webhooks go there")


def host_of(url: str) -> str:
    """Return the host of a webhook address.

    Raises:
        BadUrl: not http or https, no host, an invalid port, a user name or password, or a fragment.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as reason:
        raise BadUrl("the address of a webhook is no URL") from reason
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise BadUrl("the address of a webhook begins with https:// or http:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise BadUrl("the address of a webhook holds no name and no password; what it gets is signed instead")
    if parts.fragment or any(character.isspace() or not character.isprintable() for character in url):
        raise BadUrl("the address of a webhook has no fragment and no white space")
    return host


def is_inside(host: str) -> bool:
    """Return whether a literal IP address is not public; False for a host name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return not (mapped or address).is_global


def _answer(response: httpx.Response) -> WebhookResponse:
    told = response.headers.get("Retry-After", "")
    wait = float(told) if told.isdigit() else None
    return WebhookResponse(response.status_code, None if response.is_success else f"HTTP {response.status_code}", wait)
