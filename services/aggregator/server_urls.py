"""The words of libpq and redis-py in the URLs of Postgres and Redis: which are taken, and what is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import ParseResult, parse_qs, quote, unquote, urlencode, urlparse

POSTGRES_SCHEMES = ("postgresql+asyncpg", "postgresql", "postgres")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SESSION_ATTRIBUTES = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# Words of libpq that asyncpg understands in a DSN, or passes on to the server.
PASSED_ON: Mapping[str, tuple[str, ...] | None] = {
    "sslmode": SSL_MODES,
    "target_session_attrs": SESSION_ATTRIBUTES,
    "ssl_min_protocol_version": TLS_VERSIONS,
    "ssl_max_protocol_version": TLS_VERSIONS,
    "sslnegotiation": ("postgres", "direct"),
    **dict.fromkeys(
        ("host", "port", "user", "password", "dbname", "passfile", "sslpassword", "krbsrvname", "application_name", "options")
    ),
}
FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
# What the driver cannot do, where leaving it undone is what the value asks for.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
    "client_encoding": ("utf8", "UTF8", "auto"),
}
STATEMENT_CACHES = ("prepared_statement_cache_size", "statement_cache_size")  # words of SQLAlchemy and asyncpg
HINTS = {
    "pgbouncer": "set DATABASE_PREPARED_STATEMENTS=false",
    "search_path": "use options=-csearch_path%3D…",
    "channel_binding": "the driver has none; remove the word, and use sslmode=verify-full",
}
USERINFO = re.compile(r"(?P<user>[^:/?#@]*)(?::(?P<password>[^@]*))?@(?P<rest>.*)", re.S)

REDIS_SCHEMES = ("redis", "rediss", "unix")
REDIS_WORDS = ("db", "protocol", "health_check_interval", "socket_keepalive", "client_name")
REDIS_TLS_WORDS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
REDIS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """A Postgres as the driver asyncpg connects to it.

    Attributes:
        dsn: the URL with the words that the driver takes in it.
        connect_timeout: seconds for connecting; None for the driver's own.
        prepared_statements: whether statements may be prepared once and used again.
    """

    dsn: str
    connect_timeout: float | None = None
    prepared_statements: bool = True


def postgres_address(url: str) -> PostgresAddress:
    """Return how to connect to the Postgres of a URL in libpq's form.

    Raises:
        ValueError: the URL is malformed, or contains a word or value that is not supported; the message names it and not the password.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in POSTGRES_SCHEMES:
        raise ValueError("a URL of Postgres begins with postgresql://")
    credentials = ""
    if (match := USERINFO.fullmatch(rest)) is not None:
        password = "" if match["password"] is None else f":{_quoted(match['password'])}"
        credentials, rest = f"{_quoted(match['user'])}{password}@", match["rest"]
    parsed = _parse(f"postgresql://{rest}")
    query = _query(parsed)
    _check_ports(parsed.netloc.split(","), query.get("port", ""))
    timeout = _seconds("connect_timeout", query.pop("connect_timeout", ""))
    caches = {word: query.pop(word) for word in STATEMENT_CACHES if word in query}
    for word, size in caches.items():
        if not (size.isascii() and size.isdigit()):
            raise ValueError(f"{word}={size} is no number")
    passed = {word: value for word, value in (_translated(*item) for item in query.items()) if word}
    dsn = f"postgresql://{credentials}{parsed.netloc}{parsed.path}"
    return PostgresAddress(
        f"{dsn}?{urlencode(passed)}" if passed else dsn, timeout, not any(size == "0" for size in caches.values())
    )


def check_redis_url(url: str) -> None:
    """Check the URL of a Redis.

    Raises:
        ValueError: it is malformed, or contains a word that is not supported; the message names it and not the password.
    """
    scheme = url.partition("://")[0]
    if "sentinel" in scheme or "cluster" in scheme:
        raise ValueError(
            f"{scheme}:// is not supported: name one Redis, or the address that follows the primary, with redis:// or rediss://"
        )
    if scheme not in REDIS_SCHEMES:
        raise ValueError("a URL of Redis begins with redis://, rediss:// (TLS) or unix://")
    parsed = _parse(url)
    if "," in parsed.netloc:
        raise ValueError(
            "several hosts (sentinel or cluster) are not supported: name one Redis, or the address that follows the primary"
        )
    _check_ports([parsed.netloc.rpartition("@")[2]], "")
    query = _query(parsed)
    known = REDIS_WORDS + (REDIS_TLS_WORDS if scheme == "rediss" else ())
    for word, value in query.items():
        if word in REDIS_TLS_WORDS and word not in known:
            raise ValueError(f"{word} goes with rediss://, and this URL begins with {scheme}://")
        if word not in known:
            raise ValueError(f"{word} is not supported; these are: {', '.join(known)}")
        if word in REDIS_FILES:
            _check_file(word, value)
    database = query.get("db", "") if scheme == "unix" else parsed.path.lstrip("/") or query.get("db", "")
    if database and not (database.isascii() and database.isdigit()):
        raise ValueError(f"the database of Redis is a number, and {database!r} is none")


def _parse(url: str) -> ParseResult:
    try:
        parsed = urlparse(url)
    except ValueError as reason:
        raise ValueError("the URL is malformed; write special characters of a password as %XX") from reason
    if parsed.fragment or "#" in url:
        raise ValueError("the URL contains a #; write it as %23")
    return parsed


def _query(parsed: ParseResult) -> dict[str, str]:
    try:
        # A plus sign is itself in libpq, and not a space.
        query = parse_qs(parsed.query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(parsed.query))
    except ValueError as reason:
        raise ValueError("what follows the ? is no list of word=value, joined by &") from reason
    for word, values in query.items():
        if len(values) > 1 and word not in ("host", "port"):
            raise ValueError(f"{word} is given {len(values)} times")
    return {word: ",".join(values) for word, values in query.items()}


def _check_ports(hosts: list[str], ports: str) -> None:
    written = [host.rpartition("]")[2].partition(":")[2] for host in hosts if ":" in host.rpartition("]")[2]]
    for port in [*written, *ports.split(",")]:
        if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
            raise ValueError(f"the port {port!r} is no number from 1 to 65535")


def _translated(word: str, value: str) -> tuple[str, str]:
    """Return a word and its value as the driver takes them; an empty word for one that is left out.

    Raises:
        ValueError: the word or its value is not supported.
    """
    word = {"ssl": "sslmode", "database": "dbname"}.get(word, word)  # asyncpg's own words
    if word in FILES:
        if (word, value) == ("sslrootcert", "system"):
            raise ValueError("sslrootcert=system is not supported; name the file of the system's certificates")
        _check_file(word, value)
        return word, value
    if word in LEFT_OUT:
        if value in LEFT_OUT[word]:
            return "", ""
        raise ValueError(f"{word}={value} is not supported" + (f"; {HINTS[word]}" if word in HINTS else ""))
    if word not in PASSED_ON:
        hint = HINTS.get(word, f"these are: {', '.join(sorted({*PASSED_ON, *FILES, *LEFT_OUT, 'connect_timeout'}))}")
        raise ValueError(f"{word} is not supported; {hint}")
    values = PASSED_ON[word]
    if values is not None and value not in values:
        raise ValueError(f"{word}={value} is none of {', '.join(values)}")
    return word, value


def _seconds(word: str, value: str) -> float | None:
    """Return a positive number of seconds; None for none given, and for 0, which in libpq means to wait without a limit."""
    if value and not (value.isascii() and value.isdigit() and len(value) < 7):
        raise ValueError(f"{word}={value} is no whole number of seconds")
    return float(value) if value and int(value) > 0 else None


def _check_file(word: str, value: str) -> None:
    if not Path(value).is_file():
        raise ValueError(f"{word}={value} is no file")


def _quoted(text: str) -> str:
    return quote(unquote(text), safe="")
