"""Imports the modules named on its command line and tells what they did beyond defining names. Run in a process of its own."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import sys
import threading
from pathlib import Path

# Modules that are run and not imported, with the reason.
LOUD = {
    "ifed/cli/__main__.py": "is the command itself",
    "services/aggregator/migrations/env.py": "Alembic runs it on a connection that is open already",
}
REFUSED = {
    "socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.exec",
    "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.putenv", "os.unsetenv", "sqlite3.connect", "urllib.Request", "shutil.rmtree",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def third_party_first(modules: list[str]) -> None:
    """Import what our modules import, so that what libraries do on import is not held against us."""
    for module in modules:
        path = Path(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            roots = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = [alias.name for alias in node.names] if isinstance(node, ast.Import) else roots
            if roots and not any(root.split(".")[0] in ("ifed", "services") for root in roots):
                with contextlib.suppress(ImportError):
                    exec(compile(ast.Module([node], []), str(file), "exec"), {})  # an import statement of our own file


def deeds(modules: list[str]) -> list[str]:
    """What happened while the modules were imported, one sentence each."""
    problems: list[str] = []
    importing = ""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not importing:
            return
        if event in REFUSED:
            problems.append(f"importing {importing} does {event} {arguments!r:.120}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            problems.append(f"importing {importing} opens {arguments[0]!r} for writing")

    sys.addaudithook(hook)
    before = threading.active_count()
    environment = dict(os.environ)
    for importing in modules:
        importlib.import_module(importing)
        if threading.active_count() > before:
            problems.append(f"importing {importing} starts a thread")
            before = threading.active_count()
        if dict(os.environ) != environment:
            problems.append(f"importing {importing} changes the environment")
            environment = dict(os.environ)
    importing = ""
    return problems


def main() -> None:
    """Exit with 1 and the sentences when any import did something."""
    modules = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    third_party_first(modules)
    problems = deeds(modules)
    sys.stdout.write("".join(f"{words}\n" for words in problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
