"""Rules of this code base that no linter checks, as functions from a file to the sentences about what breaks them."""

from __future__ import annotations

import ast
import re

from tests.house.sources import Function, Source

NUMERIC = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult, ast.LShift, ast.RShift, ast.BitAnd, ast.BitXor
)  # fmt: skip
# Written in pieces, so that this file does not hold what it looks for.
HOSTS = re.compile(
    "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.org", "crates" + r"\.io", "debian" + r"\.org"])
)
PATHS = re.compile(r"(?<![\w.*})-])/(?:work|opt|root" + r"|home/\w+)/|/tmp" + r"/w\b")


def routes(source: Source) -> list[Function]:
    """Return the functions that a decorator such as `@router.get(…)` makes routes."""
    return [function for function in source.functions if any(_is_route(decorator) for decorator in function.decorator_list)]


def _is_route(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Attribute) and called.attr in ("get", "put", "post", "patch", "delete")


def _last_name(called: ast.expr) -> str:
    """Return `skip` of `pytest.mark.skip`."""
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""


def more_than_a_call(source: Source) -> list[str]:
    """Return a sentence for each `try` and each operator on numbers in a route; `|` joins types and does not count."""
    return [
        f"{source.path}:{node.lineno} {'handles errors' if isinstance(node, ast.Try | ast.TryStar) else 'computes'} in a route: "
        "let the application refuse or compute; the one handler in ifed.server answers refusals"
        for route in routes(source)
        for node in ast.walk(route)
        if isinstance(node, ast.Try | ast.TryStar) or (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, NUMERIC))
    ]


def skips_without_reason(source: Source) -> list[str]:
    """Return a sentence for each test that is skipped or expected to fail without saying why."""
    lines = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and (name := _last_name(node.func)) in ("skip", "skipif", "xfail", "importorskip"):
            keywords = {keyword.arg for keyword in node.keywords}
            positional = bool(node.args) and name in ("skip", "xfail")
            if not positional and "reason" not in keywords:
                lines.append(node.lineno)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            markers = [ast.unparse(decorator) for decorator in node.decorator_list if isinstance(decorator, ast.Attribute)]
            lines += [node.lineno for marker in markers if marker in ("pytest.mark.skip", "pytest.mark.xfail")]
    return [f"{source.path}:{line} skips without a reason: say in `reason=` what has to change for it to run" for line in lines]


def short_names(source: Source) -> list[str]:
    """Return a sentence for each test whose name is too short to be a claim."""
    return [
        f"{source.path}:{function.lineno} {function.name}: name the claim, like test_a_closed_round_refuses_a_late_update"
        for function in source.functions
        if function.name.startswith("test") and len(function.name.split("_")) < 4
    ]


def machine_traces(path: str, text: str) -> list[str]:
    """Return a sentence for each package registry host and each folder of one machine; an image has folders of its own."""
    patterns = [HOSTS] if "Dockerfile" in path else [HOSTS, PATHS]
    return [
        f"{path}:{1 + text.count(chr(10), 0, match.start())} holds {match.group()!r}: leave registries to the tools' own settings, "
        "name paths relative to the repository"
        for pattern in patterns
        for match in pattern.finditer(text)
    ]


def may_run_code_of_a_model(source: Source) -> list[str]:
    """Return a sentence for each `from_pretrained` that does not say what it does with code that comes with a model."""
    return [
        f"{source.path}:{node.lineno} loads a model without trust_remote_code=False"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
        and not any(keyword.arg in (None, "trust_remote_code") for keyword in node.keywords)
    ]
