"""Check whether a service is ready, for a container's health check: `python -m ifed.healthcheck URL`."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

PATIENCE_SECONDS = 4.0


def problem(url: str) -> str | None:
    """Return why the service is not ready, in its own words or because it does not answer; None if it is ready.

    Args:
        url: a readiness page, `http://127.0.0.1:8080/readyz`.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the service is here, no proxy stands before it
    try:
        with opener.open(url, timeout=PATIENCE_SECONDS):
            return None
    except urllib.error.HTTPError as refusal:
        return f"{url} answers {refusal.code}: {refusal.read(1000).decode(errors='replace')}"
    except OSError as reason:
        return f"{url} does not answer: {reason}"


def main() -> None:
    """Exit with 0 if the URL in the first argument reports ready, otherwise with 1 and the reason, which `docker inspect` shows."""
    sys.exit(problem(sys.argv[1]))


if __name__ == "__main__":
    main()
