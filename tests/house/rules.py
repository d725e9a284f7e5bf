"""The house rules as pure functions: a file in, sentences about what breaks the rule and what to do out. Reads no disk."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

from tests.house.sources import Function, Source

FILE_LINES = 250
FUNCTION_LINES = 40  # the style asks for about 30; a function is refused above 40
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"}

# What a pure file may take from the standard library. No clock, randomness, environment, files, network, threads.
PURE_STDLIB = {
    "__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "re", "statistics", "string", "types", "typing",
}  # fmt: skip
IMPURE_CALLS = re.compile(
    r"(datetime|date)\.(now|utcnow|today)|(np|numpy)\.(random\b.*|load|loadtxt|save|savez|savetxt|fromfile|memmap)|open|input|print|breakpoint"
)
NUMERIC = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult, ast.LShift, ast.RShift, ast.BitAnd, ast.BitXor
)  # fmt: skip
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"}
OPENS_THINGS = re.compile(
    r"open|.*\.(open|connect|from_url|from_pretrained|read_text|read_bytes|write_text|write_bytes|mkdir|environ\.get|getenv|run|Popen)"
    r"|connect|create_engine|create_async_engine|create_app|Settings|Redis|(httpx\.)?(Async)?Client|AggregatorClient|InferenceClient"
    r"|(Thread|Process)(PoolExecutor)?|threading\.Thread|urlopen|basicConfig|torch\.set_\w+"
)


def forbidden_imports(source: Source, roots: Collection[str], *, remedy: str) -> list[str]:
    """Imports of `roots` or of anything below them."""
    return [
        f"{source.path}:{found.line} imports {found.name}, which this file may not: {remedy}"
        for found in source.imports
        if found.under(*roots)
    ]


def imports_beyond(source: Source, allowed: Collection[str], *, remedy: str) -> list[str]:
    """Imports of anything but `allowed` and what is below it."""
    return [
        f"{source.path}:{found.line} imports {found.name}; it may import only {', '.join(sorted(allowed))}: {remedy}"
        for found in source.imports
        if not found.under(*allowed)
    ]


def impure_calls(source: Source) -> list[str]:
    """Calls that read a clock, a random source or a file."""
    return [
        f"{source.path}:{call.lineno} calls {ast.unparse(call.func)}; pass the time, the numbers or the bytes in as an argument"
        for call in _calls(source.tree)
        if IMPURE_CALLS.fullmatch(ast.unparse(call.func))
    ]


def error_handling(source: Source) -> list[str]:
    """`try` statements."""
    return [
        f"{source.path}:{node.lineno} has a try; raise a refusal of errors.py where it happens, the one handler of ifed.web answers"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Try | ast.TryStar)
    ]


def arithmetic(source: Source) -> list[str]:
    """Binary operators on numbers; `|` joins types and is no arithmetic."""
    return [
        f"{source.path}:{node.lineno} computes `{ast.unparse(node)}`; move that into the service or a domain function"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, NUMERIC)
    ]


def environment_reads(source: Source, *, with_reason: bool = False) -> list[str]:
    """Reads of the process's environment; `with_reason` lets those stand that a comment beside or above explains."""
    lines = [node.lineno for node in ast.walk(source.tree) if isinstance(node, ast.Attribute) and ast.unparse(node) in ENVIRONMENT]
    lines += [found.line for found in source.imports if found.name in ENVIRONMENT]
    return [
        f"{source.path}:{line} reads the environment; make it a setting of settings.py and hand its value down"
        for line in sorted(set(lines))
        if not (with_reason and _commented(source, line))
    ]


def _commented(source: Source, line: int) -> bool:
    above = source.lines[line - 2].strip() if line > 1 else ""
    return above.startswith("#") or "#" in source.lines[line - 1]


def acts_on_import(source: Source) -> list[str]:
    """Statements of a module that do something when it is imported, beyond defining names."""
    return [
        f"{source.path}:{node.lineno} runs `{ast.unparse(node).splitlines()[0][:80]}` on import; "
        "do it in create_app, in the lifespan or in main, and hand the result down"
        for node in source.tree.body
        if _acts(node)
    ]


def _acts(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.ClassDef():
            return False
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Pass():
            return False
        case ast.Assign() | ast.AnnAssign():
            return any(OPENS_THINGS.fullmatch(ast.unparse(call.func)) for call in _calls(node))
        case ast.Expr(value=ast.Call(func=func)):
            # A command put into its group, routes put into a router: names joined to names.
            return not re.fullmatch(r"app\.(add_typer|command\(.*\))|router\.include_router", ast.unparse(func))
        case ast.If(test=test):
            return ast.unparse(test) not in ("TYPE_CHECKING", "__name__ == '__main__'")
        case ast.Try(body=body, handlers=handlers):
            return any(_acts(part) for part in body) or any(_acts(part) for handler in handlers for part in handler.body)
    return True


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def missing_opening(source: Source) -> list[str]:
    """A file without a docstring whose first line is a whole sentence."""
    opening = ast.get_docstring(source.tree) or ""
    first, _, rest = opening.partition("\n")
    if first.endswith(".") and (not rest or rest.startswith("\n")):
        return []
    return [f"{source.path} does not open with a sentence: begin with one line in a docstring that tells its job and its border"]


def too_long(source: Source) -> list[str]:
    """A file of more lines than one job takes."""
    if len(source.lines) <= FILE_LINES:
        return []
    return [f"{source.path} has {len(source.lines)} lines, at most {FILE_LINES} are good to read: it has two jobs, make two files"]


def long_functions(source: Source) -> list[str]:
    """Functions of more lines than can be read at once; docstring, comments and blank lines do not count."""
    return [
        f"{source.path}:{function.lineno} {function.name} has {length} lines, at most {FUNCTION_LINES}: name a part of it and take it out"
        for function in source.functions
        if (length := _statement_lines(source, function)) > FUNCTION_LINES
    ]


def _statement_lines(source: Source, function: Function) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body or function.end_lineno is None:
        return 0
    lines = (line.strip() for line in source.lines[body[0].lineno - 1 : function.end_lineno])
    return sum(bool(line) and not line.startswith("#") for line in lines)


def empty_names(source: Source) -> list[str]:
    """Files and folders whose name says nothing."""
    words = {word for part in source.path.removesuffix(".py").split("/") for word in part.split("_")}
    return [f"{source.path} is named {word!r}: name it for the job it does" for word in sorted(words & EMPTY_NAMES)]


def skips_without_reason(source: Source) -> list[str]:
    """Tests that are skipped or expected to fail and do not say why."""
    found = []
    for node in ast.walk(source.tree):
        words = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and re.fullmatch(r"(pytest\.)?(mark\.)?(skip|skipif|xfail|importorskip)", words):
            given = {keyword.arg for keyword in node.keywords}
            positional = bool(node.args) and words.endswith(("skip", "xfail")) and not words.endswith("importorskip")
            if not positional and "reason" not in given:
                found.append(node.lineno)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bare = [ast.unparse(one) for one in node.decorator_list if isinstance(one, ast.Attribute)]
            found += [node.lineno for words in bare if words in ("pytest.mark.skip", "pytest.mark.xfail")]
    return [f"{source.path}:{line} skips without a reason: say in `reason=` what has to change for it to run" for line in found]


def mocks(source: Source) -> list[str]:
    """Patches from `unittest.mock`."""
    return forbidden_imports(source, ["unittest.mock", "mock"], remedy="use a fake of tests/fakes.py that sits the contract suite")


# Written in pieces, so that this file does not hold what it looks for.
HOSTS = re.compile(
    "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.org", "crates" + r"\.io", "debian" + r"\.org"])
)
PATHS = re.compile(r"(?<![\w.*})-])/(?:work|opt|root" + r"|home/\w+)/|/tmp" + r"/w\b")


def machine_traces(path: str, text: str) -> list[str]:
    """Package registry hosts and folders of one machine; an image has folders of its own."""
    patterns = [HOSTS] if "Dockerfile" in path else [HOSTS, PATHS]
    return [
        f"{path}:{number} holds {match.group()!r}: leave registries to the tools' own settings, name paths relative to the repository"
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern in patterns
        for match in pattern.finditer(line)
    ]
