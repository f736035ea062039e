"""The rules of the house, kept by reading every file's syntax tree.

``python -m tests.test_tidy`` lists the error codes that the product raises, with the files that do.
"""

import ast
import configparser
import importlib.metadata
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("consensus", "contracts", "p2p", "node", "services", "cli", "bench")

# Who may import whom: the longest folder that holds a file decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "consensus": ("consensus",),
    "consensus/ledger": ("consensus.ledger",),
    "consensus/pbft": ("consensus.ledger", "consensus.pbft"),
    "contracts": ("consensus.ledger", "contracts"),
    "p2p": ("consensus.ledger", "p2p"),
    "node": ("consensus", "contracts", "p2p", "node"),
    "services": ("consensus.ledger", "services.client", "services.local", "services.messages", "services.accounts"),
    "services/demo": (
        "consensus.ledger",
        "services.client",
        "services.local",
        "services.messages",
        "services.rights",
        "services.agency",
        "services.accounts",
        "services.settlement",
        "services.payee",
        "services.stream",
        "services.demo",
    ),
    "services/local": ("consensus.ledger", "services.client", "services.local"),
    "services/client": ("consensus.ledger", "services.client"),
    "cli": PRODUCT,
    "bench": tuple(room for room in PRODUCT if room != "cli"),
}

IMPURE_MODULES = {
    *("asyncio", "trio", "threading", "multiprocessing", "concurrent", "subprocess", "signal", "sched", "select"),
    *("time", "datetime", "random", "secrets", "uuid", "locale", "platform"),
    *("os", "io", "pathlib", "shutil", "tempfile", "socket", "ssl", "http", "urllib", "sqlite3", "plyvel"),
    *("logging", "structlog", "decimal", "fractions", "math", "cmath", "statistics", "pickle", "weakref"),
}
IMPURE_NAMES = {"open", "input", "print", "eval", "exec", "compile", "__import__", "globals", "float", "complex"}
IMPURE_NAMES |= {"hash", "id", "vars", "breakpoint"}

# (file, name) → why it may stand there.
PURITY_EXCEPTIONS = {
    ("contracts/runtime/lint.py", "float"): "the lint looks for them",
    ("contracts/runtime/lint.py", "complex"): "the lint looks for them",
    ("contracts/runtime/loader.py", "vars"): "the guarded operators of one class are listed by name",
    ("contracts/runtime/loader.py", "compile"): "a contract's source becomes a module with the meter built in",
    ("contracts/runtime/loader.py", "exec"): "a contract's source becomes a module with the meter built in",
    ("contracts/runtime/registry.py", "pathlib"): "the contracts' source files are read once at start",
    ("contracts/runtime/registry.py", "a true division"): "it joins the path of that folder",
}

# file → why it may catch everything without raising it again; only a task's border may.
BROAD_HANDLERS = {
    "cli/main.py": "the program's border: people get one line, HANSA_DEBUG=1 a traceback",
    "node/environment.py": "a bug in the link to the trusted environment must not end the chain; it is logged",
    "node/private.py": "a bug in private channels must not end the chain; it is logged, and their users are told",
    "node/rpc/dispatch.py": "a bug in one method must not end other callers' sessions; it is logged",
    "services/local/service.py": "a bug in one method must not end the program's other callers; it is logged",
    "services/payee/enclave_program.py": "a bug in one ask must not end the others', nor say what it was about",
}

FUNCTION_LINES, FILE_LINES, CLASS_METHODS = 70, 600, 20

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files_of(*folders: str) -> list[str]:
    """Paths of Python files below the root, in order, with forward slashes."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@cache
def tree_of(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"), path)


def imports_of(path: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a file imports; ``from a import b`` gives ``a.b``."""
    package = PurePosixPath(path).parent.parts
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = [*package[: len(package) - level + 1]] if level else []
                stem = ".".join([*base, *([module] if module else [])])
                yield from ((node.lineno, f"{stem}.{alias.name}") for alias in names)


def is_pure(path: str) -> bool:
    return path.startswith(("consensus/", "contracts/")) or path.endswith("machine.py")


def import_faults(path: str) -> list[str]:
    room = max((room for room in MAY_IMPORT if path.startswith(room + "/")), key=len)
    allowed = MAY_IMPORT[room]
    if room == "services" and path.count("/") > 1:
        allowed += ("services." + path.split("/")[1],)
    faults = []
    for line, name in imports_of(path):
        ours = name.split(".")[0] in (*PRODUCT, "tests")
        if ours and not any(name == may or name.startswith(may + ".") for may in allowed):
            faults.append(f"{path}:{line} imports {name}")
    return faults


def impurities(path: str) -> list[tuple[int, str]]:
    """Line and name of everything in a file that depends on more than its arguments."""
    found = [(line, name.split(".")[0]) for line, name in imports_of(path) if name.split(".")[0] in IMPURE_MODULES]
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) if name in IMPURE_NAMES:
                found.append((node.lineno, name))
            case ast.Constant(value=float() | complex()):
                found.append((node.lineno, f"the float {node.value}"))
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                found.append((node.lineno, "a true division"))
    return found


def purity_faults(path: str) -> list[str]:
    return [f"{path}:{line} uses {name}" for line, name in impurities(path) if (path, name) not in PURITY_EXCEPTIONS]


def broad_handlers(path: str) -> list[int]:
    """Lines of handlers that catch everything and do not end by raising it again."""
    lines = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = (
                {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"Exception"}
            )
            last = node.body[-1]
            raises_again = isinstance(last, ast.Raise) and last.exc is None
            if caught & {"Exception", "BaseException"} and not raises_again:
                lines.append(node.lineno)
    return lines


def sleep_faults(path: str) -> list[str]:
    faults = [f"{path}:{line}" for line, name in imports_of(path) if name in {"time.sleep", "trio.sleep"}]
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Attribute(value=ast.Name(id="time" | "trio"), attr="sleep" | "sleep_until"):
                faults.append(f"{path}:{node.lineno}")
    return faults


def codes_in(path: str) -> Iterator[str]:
    """Codes given to errors: texts, both arms of a conditional, and names of the module's own text constants."""
    tree = tree_of(path)
    constants: dict[str, str] = {}
    for statement in tree.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str() as text))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str() as text))
            ):
                constants[name] = text

    def texts(expression: ast.expr) -> Iterator[str]:
        match expression:
            case ast.Constant(value=str() as text):
                yield text
            case ast.IfExp(body=body, orelse=orelse):
                yield from texts(body)
                yield from texts(orelse)
            case ast.Name(id=name) if name in constants:
                yield constants[name]

    places = {"PeerError": 0, "LocalError": 0, "Revert": 0, "StorageError": 0, "require": 1}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in places:
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                given += node.args[places[name] : places[name] + 1]
                for expression in given:
                    yield from texts(expression)


def raised_codes() -> dict[str, list[str]]:
    """Every error code in the product, with the files that raise it."""
    codes: dict[str, list[str]] = {}
    for path in files_of(*PRODUCT):
        for code in sorted(set(codes_in(path))):
            codes.setdefault(code, []).append(path)
    return dict(sorted(codes.items()))


def sizes(path: str) -> list[str]:
    tree = tree_of(path)
    lines = len((ROOT / path).read_text("utf-8").splitlines())
    notes = [f"{path} has {lines} lines"] if lines > FILE_LINES else []
    for node in ast.walk(tree):
        if isinstance(node, Function) and node.end_lineno and node.end_lineno - node.lineno >= FUNCTION_LINES:
            notes.append(f"{path}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines")
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(item, Function) for item in node.body)
            notes += [f"{path}:{node.lineno} {node.name} has {methods} methods"] if methods > CLASS_METHODS else []
    return notes


def test_nobody_imports_what_is_not_theirs() -> None:
    assert [fault for path in files_of(*PRODUCT) for fault in import_faults(path)] == []


def test_the_core_is_pure() -> None:
    assert [fault for path in files_of(*PRODUCT) if is_pure(path) for fault in purity_faults(path)] == []


def test_no_bare_assert_in_the_product() -> None:
    found = [(path, node) for path in files_of(*PRODUCT) for node in ast.walk(tree_of(path))]
    assert [f"{path}:{node.lineno}" for path, node in found if isinstance(node, ast.Assert)] == []


def test_nothing_is_swallowed_but_at_a_tasks_border() -> None:
    found = [(path, line) for path in files_of(*PRODUCT) for line in broad_handlers(path)]
    assert [f"{path}:{line}" for path, line in found if path not in BROAD_HANDLERS] == []


def test_nothing_is_raised_out_of_except_star() -> None:
    """Python 3.11.0 to 3.11.3 wrap what such a handler raises in a group, later ones do not."""
    found = [(path, node) for path in files_of(*PRODUCT, "tests") for node in ast.walk(tree_of(path))]
    handlers = [(path, handler) for path, node in found if isinstance(node, ast.TryStar) for handler in node.handlers]
    assert handlers
    raising = [item for item in handlers if any(isinstance(node, ast.Raise) for node in ast.walk(item[1]))]
    assert [f"{path}:{handler.lineno}" for path, handler in raising] == []


def test_no_test_sleeps() -> None:
    assert [fault for path in files_of("tests") for fault in sleep_faults(path)] == []


def test_folders_of_code_are_packages() -> None:
    folders = {PurePosixPath(path).parent for path in files_of(*PRODUCT, "tests")}
    assert sorted(str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()) == []


def is_packed(path: Path, patterns: configparser.SectionProxy) -> bool:
    """Tell whether a wheel holds a file that is no code: its package, the nearest folder with code, must name it."""
    folder = path.parent
    while not (folder / "__init__.py").exists():
        folder = folder.parent
    inside = path.relative_to(folder)
    package = ".".join(folder.relative_to(ROOT).parts)
    named = f"{patterns['*']}, {patterns.get(package, '')}".split(", ")
    return any(inside.match(name) and name.count("/") == len(inside.parts) - 1 for name in named if name)


def test_whatever_is_no_code_is_in_the_wheel() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    files = [path for room in PRODUCT for path in (ROOT / room).rglob("*") if path.is_file()]
    data = [path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts]
    patterns = config["options.package_data"]
    assert sorted(str(path.relative_to(ROOT)) for path in data if not is_packed(path, patterns)) == []


def test_error_codes_are_snake_case_and_listed() -> None:
    codes = raised_codes()
    assert [code for code in codes if not re.fullmatch("[a-z][a-z0-9_]{0,63}", code)] == []
    listed = set(re.findall(r"`([a-z][a-z0-9_]*)`", (ROOT / "docs" / "errors.md").read_text("utf-8")))
    assert {code: where for code, where in codes.items() if code not in listed} == {}, "missing in docs/errors.md"


def test_nobody_else_owns_our_import_names() -> None:
    owners = importlib.metadata.packages_distributions()
    foreign = {name: set(owners.get(name, [])) - {"hansa"} for name in (*PRODUCT, "tests")}
    assert {name: who for name, who in foreign.items() if who} == {}


def test_exceptions_to_the_rules_are_still_needed() -> None:
    used = {(path, name) for path in files_of(*PRODUCT) if is_pure(path) for _, name in impurities(path)}
    assert set(PURITY_EXCEPTIONS) - used == set()
    assert [path for path in BROAD_HANDLERS if not broad_handlers(path)] == []


def test_sizes_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    notes = [note for path in files_of(*PRODUCT) for note in sizes(path)]
    with capsys.disabled():
        for note in notes:
            print(f"\nsize: {note}", end="")


if __name__ == "__main__":
    for raised, paths in raised_codes().items():
        print(f"{raised:32} {', '.join(paths)}")
