"""Posts to webhook addresses, with the check that they are not inside this network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx

from ifed.clients.transport import retry_after_seconds
from ifed.errors import BadUrl

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str], Awaitable[list[str]]]
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


async def resolve(host: str) -> list[str]:
    """Return the addresses of a host name, in the order in which to try them.

    Raises:
        OSError: the name has none, or cannot be resolved now.
    """
    addresses = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in addresses]


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
    """Posts to webhooks. It follows no redirects and uses no proxy of the environment.

    A host name is resolved once for each post. The addresses are checked, and the connection goes to one of these; `Host` and the
    name in the certificate stay those of the URL.

    Args:
        timeout: seconds for one post, from resolving the name to the response.
        private: whether receivers may be on this machine or in a private network.
        resolver: returns the addresses of a host name.
    """

    def __init__(self, *, timeout: float, private: bool, resolver: Resolver = resolve) -> None:
        self._timeout, self._private, self._resolve = timeout, private, resolver
        # Connections are pooled by address, so one that is kept could serve another name with the certificate of the first.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False, limits=limits)

    async def close(self) -> None:
        await self._http.aclose()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        """Send once. Every error is reported in the answer, without the address."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(url, body, headers)
        except BadUrl as refusal:
            return WebhookResponse(None, refusal.detail)
        except TimeoutError:
            return WebhookResponse(None, f"no answer within {self._timeout:g} seconds")
        except Exception as reason:  # noqa: BLE001  # whatever a receiver causes is the outcome of this post
            return WebhookResponse(None, type(reason).__name__)

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        target = check_url(url, private=self._private)
        headers = dict(headers) | {"Host": target.netloc.decode("ascii")}
        certificate_name = {"sni_hostname": target.raw_host.decode("ascii")}
        unreachable: httpx.ConnectError | None = None
        for address in await self._addresses(target):
            at = target.copy_with(host=address)
            try:
                async with self._http.stream("POST", at, content=body, headers=headers, extensions=certificate_name) as response:
                    return _answer(response)
            except httpx.ConnectError as reason:
                unreachable = reason
        raise unreachable or OSError("the host name has no address")

    async def _addresses(self, target: httpx.URL) -> list[str]:
        """Return the addresses to connect to.

        Raises:
            BadUrl: one of them is private, which a host name may point to.
        """
        literal = literal_address(target.host)
        addresses = [str(literal)] if literal is not None else await self._resolve(target.raw_host.decode("ascii"))
        if not self._private and any(is_inside(address) for address in addresses):
            raise BadUrl("the host's name leads to this machine or into a private network")
        return addresses


def check_url(url: str, *, private: bool) -> httpx.URL:
    """Return the address of a webhook as it is connected to, with its host normalised.

    Raises:
        BadUrl: not http or https, no host, an invalid port, a user name or password, a fragment, or on this machine or in a private
            network where `private` is false.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as reason:
        raise BadUrl("the address of a webhook is no URL") from reason
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.port == 0 or (parsed.port or 0) > 65_535:
        raise BadUrl("the address of a webhook begins with https:// or http:// and names a host")
    if parsed.userinfo:
        raise BadUrl("the address of a webhook holds no name and no password; what it gets is signed instead")
    if "#" in url or "\\" in url or any(character.isspace() or not character.isprintable() for character in url):
        raise BadUrl("the address of a webhook has no fragment, no backslash and no white space")
    name = parsed.host.rstrip(".").lower()
    if not private and (name == "localhost" or name.endswith(".localhost") or is_inside(name)):
        raise BadUrl(
            f"{parsed.host} is on this machine or in a private network; WEBHOOK_PRIVATE_ADDRESSES=true lets webhooks go there"
        )
    return parsed


def literal_address(host: str) -> IPAddress | None:
    """Return the address that a host spells out; None for a host name.

    An IPv4 address has more spellings than its usual one, and resolvers take them all: `2130706433`, `0x7f.1` and `0177.0.0.1` are
    127.0.0.1.
    """
    host = host.rstrip(".")
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


def is_inside(host: str) -> bool:
    """Return whether a literal IP address is not a public host's; False for a host name.

    An IPv6 address that holds an IPv4 address (mapped, NAT64 or 6to4) is judged by that one.
    """
    address = literal_address(host)
    if address is None:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is None:
            return address not in GLOBAL_UNICAST or not address.is_global
        address = inner
    return not address.is_global or address.is_multicast or address.is_reserved


def _answer(response: httpx.Response) -> WebhookResponse:
    error = None if response.is_success else f"HTTP {response.status_code}"
    return WebhookResponse(response.status_code, error, retry_after_seconds(response.headers.get("Retry-After")))
