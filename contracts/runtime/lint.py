"""The determinism guard: refuses contract code whose result could differ between two nodes, or escape its meter.

It is a net under authors who mean well and under reviewers, at load and in CI. It is *not* a sandbox and
never a trust boundary: contract code ships with the node and is activated by the members' approval, as
the node's own code is (escapes from every such filter are known; see FAULTS R82).

What is allowed is listed; all else is refused: statements, expressions, imports, built-ins, and those
attributes of built-in values that cost little or that the rewriting guards.
"""

import ast
import builtins
import re
from collections.abc import Iterable

from consensus.ledger.errors import LocalError
from contracts.runtime.contract import __all__ as contract_exports
from contracts.runtime.rewrite import GUARDED_BUILTINS, GUARDED_METHODS, KEYED_METHODS

ALLOWED_IMPORTS: dict[str, frozenset[str]] = {
    "typing": frozenset(
        {"Annotated", "Any", "ClassVar", "Final", "Literal", "NotRequired", "TypeAlias", "TypedDict", "cast"}
    ),
    "consensus.ledger.codec": frozenset({"INTEGER_MAX", "INTEGER_MIN", "Value"}),
    "consensus.ledger.errors": frozenset({"LocalError", "Revert"}),
    "consensus.ledger.genesis": frozenset({"Genesis"}),
    "consensus.ledger.ids": frozenset({"ADDRESS_BYTES", "HASH_BYTES", "ZERO_HASH", "account_address"}),
    "consensus.ledger.keys": frozenset({"PUBLIC_KEY_BYTES", "SIGNATURE_BYTES", "Purpose"}),
    "consensus.ledger.validators": frozenset(
        {"VALIDATORS_MAX", "Validator", "ValidatorSet", "decode_validators_untrusted", "quorum_of", "seat_payload"}
    ),
    "contracts.runtime.accounts": frozenset({"ACCOUNT_PREFIX", "ACTIVE", "AccountRecord", "NAME_PREFIX", "SUSPENDED"}),
    "contracts.runtime.contract": frozenset(contract_exports),
}
"""What a contract may import, by module; besides, ``import msgspec`` for ``msgspec.Meta``."""

TYPES = frozenset({"bool", "bytes", "dict", "int", "list", "str", "tuple"})
CHEAP_BUILTINS = frozenset({"abs", "bool", "chr", "isinstance", "len", "ord", "range"})
"""Built-ins that run as they are: their cost does not grow with their arguments."""

SAFE_METHODS = frozenset({"append", "bit_count", "bit_length", "items", "keys", "popitem", "values"})
"""Methods of built-in values that run as they are."""

TREE_DEPTH_MAX = 64
"""How deep a contract's syntax tree may nest."""

_BUILTIN_NAMES = frozenset(dir(builtins))
_ALLOWED_BUILTINS = GUARDED_BUILTINS | CHEAP_BUILTINS | TYPES | {"None", "True", "False"}
_BUILTIN_ATTRIBUTES = frozenset(
    name for kind in (bool, bytes, dict, int, list, str, tuple, range) for name in dir(kind) if name[0] != "_"
)
_ALLOWED_ATTRIBUTES = GUARDED_METHODS | KEYED_METHODS | SAFE_METHODS
_RAISED = frozenset({"Revert", "LocalError"})
_FORMAT = re.compile(r"0?[1-9]?[0-9]?[dxX]?")
_DECORATORS = frozenset({"method", "query"})

_ALLOWED_NODES = (
    ast.Module, ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.If, ast.For, ast.While, ast.Break,
    ast.Continue, ast.Pass, ast.Raise, ast.Try, ast.ExceptHandler, ast.FunctionDef, ast.ClassDef, ast.Import,
    ast.ImportFrom, ast.alias, ast.Delete, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Dict, ast.List,
    ast.Tuple, ast.ListComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Compare, ast.Call, ast.keyword,
    ast.JoinedStr, ast.FormattedValue, ast.Constant, ast.Attribute, ast.Subscript, ast.Slice, ast.Name, ast.Starred,
    ast.arguments, ast.arg, ast.Lambda, ast.NamedExpr, ast.expr_context, ast.boolop, ast.operator, ast.unaryop,
    ast.cmpop,
)  # fmt: skip
_TOP_NODES = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.Expr)
_CONSTANT_NODES = (
    ast.Constant, ast.Tuple, ast.Dict, ast.Name, ast.Subscript, ast.UnaryOp, ast.BinOp, ast.Attribute, ast.Call,
    ast.keyword, ast.expr_context, ast.operator, ast.unaryop, ast.Starred, ast.JoinedStr, ast.FormattedValue,
)  # fmt: skip
_PLAIN_NAMES = {
    ast.Set: "set display (its order is not the same everywhere)",
    ast.SetComp: "set comprehension (its order is not the same everywhere)",
    ast.Yield: "yield",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.Assert: "assert (raise Revert, or call context.require)",
    ast.With: "with",
    ast.Match: "match",
    ast.Await: "await",
    ast.AsyncFunctionDef: "async",
}


def lint(file_name: str, source: bytes) -> list[str]:
    """Return what is wrong with a contract's source, as ``FILE:LINE: REASON`` in order; empty when it may be loaded."""
    try:
        tree = ast.parse(source, file_name)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return [f"{file_name}:{line}: no Python: {error.__class__.__name__}"]
    except (MemoryError, RecursionError):
        return [f"{file_name}:1: nested too deep to be read"]
    if _depth(tree) > TREE_DEPTH_MAX:
        return [f"{file_name}:1: nested too deep to be read"]
    checker = _Checker()
    checker.check(tree)
    return [f"{file_name}:{line}: {reason}" for line, reason in sorted(set(checker.findings))]


def check_source(file_name: str, source: bytes) -> ast.Module:
    """Return the syntax tree of a contract that may be loaded.

    Raises:
        LocalError: ``contract_refused`` with every finding, one a line.
    """
    findings = lint(file_name, source)
    if findings:
        raise LocalError("contract_refused", "\n".join(findings))
    return ast.parse(source, file_name)


def _depth(tree: ast.AST) -> int:
    """Return how deep a syntax tree nests."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


class _Checker(ast.NodeVisitor):
    """Collects findings. ``_typed`` counts how many annotations we are inside of, where names are types."""

    def __init__(self) -> None:
        self.findings: list[tuple[int, str]] = []
        self._typed = 0

    def check(self, tree: ast.Module) -> None:
        """Check a whole module."""
        for node in ast.walk(tree):
            self._check_names(node)
        for statement in tree.body:
            if isinstance(statement, _TOP_NODES):
                self._check_constant(statement)
            else:
                self._refuse(statement, "at its top a module has imports, constants, functions and classes only")
        self.visit(tree)

    def _refuse(self, node: ast.AST, reason: str) -> None:
        self.findings.append((getattr(node, "lineno", 1), reason))

    # -- places ----------------------------------------------------------------------------------------

    def _check_constant(self, statement: ast.stmt) -> None:
        """Check that what a module or class holds cannot change from one call to the next."""
        if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant):
            self._refuse(statement, "only documentation stands here")
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            return
        self._typed += 1
        for node in ast.walk(statement.value):
            if not isinstance(node, _CONSTANT_NODES):
                self._refuse(node, f"{type(node).__name__} in a constant: what a call could change must be state")
            is_call = isinstance(node, ast.Call) and ast.unparse(node.func) not in ("msgspec.Meta", "bytes", "tuple")
            if is_call:
                self._refuse(node, "a constant calls nothing but msgspec.Meta, bytes and tuple")
        self._typed -= 1

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            is_constant = isinstance(statement, ast.Assign | ast.AnnAssign)
            self._typed += is_constant
            self.visit(statement)
            self._typed -= is_constant

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if node.decorator_list:
            self._refuse(node, "a class takes no decorators")
        self._visit_all([*node.bases, *node.keywords])
        for statement in node.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr | ast.Pass):
                self._check_constant(statement)
            elif not isinstance(statement, ast.FunctionDef):
                self._refuse(statement, "a class holds constants and methods only")
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            if not (isinstance(decorator, ast.Name) and decorator.id in _DECORATORS):
                self._refuse(decorator, "the only decorators are method and query")
        self._annotation(node.returns)
        self._check_arguments(node.args)
        for statement in node.body:
            for inner in ast.walk(statement):
                if isinstance(inner, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
                    self._refuse(inner, "functions, classes and imports stand at the module's top or in a class")
        self._visit_all(node.body)

    def _check_arguments(self, arguments: ast.arguments) -> None:
        if arguments.vararg or arguments.kwarg:
            self._refuse(arguments.vararg or arguments.kwarg or arguments, "no * or ** among the parameters")
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            self._annotation(argument.annotation)
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if default is None:
                continue
            if not isinstance(default, ast.Constant | ast.Name | ast.UnaryOp):
                self._refuse(default, "a default is a constant")
            self.visit(default)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        if node.value is not None:
            self.visit(node.target)
            self.visit(node.value)

    def _annotation(self, node: ast.expr | None) -> None:
        if node is not None:
            self._typed += 1
            self.visit(node)
            self._typed -= 1

    def _visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    # -- nodes -----------------------------------------------------------------------------------------

    def visit(self, node: ast.AST) -> None:
        """Check one node, which must be of an allowed kind, and those below it."""
        if isinstance(node, _ALLOWED_NODES):
            super().visit(node)
        else:
            self._refuse(node, f"{_PLAIN_NAMES.get(type(node), type(node).__name__)} is not allowed")

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, float | complex):
            self._refuse(node, "floats are not the same everywhere: use integers")
        elif node.value is Ellipsis:
            self._refuse(node, "... is not allowed")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._check_operator(node, node.op)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._check_operator(node, node.op)
        self.generic_visit(node)

    def _check_operator(self, node: ast.AST, operator: ast.operator) -> None:
        if isinstance(operator, ast.Div):
            self._refuse(node, "/ gives floats: use //")
        elif isinstance(operator, ast.MatMult):
            self._refuse(node, "@ is not allowed")

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            if isinstance(operator, ast.Is | ast.IsNot):
                right = node.comparators[index]
                if not (isinstance(right, ast.Constant) and right.value in (None, True, False)):
                    self._refuse(node, "is compares with None, True and False only: use ==")
            if isinstance(operator, ast.In | ast.NotIn) and len(node.ops) > 1:
                self._refuse(node, "in stands in no chain of comparisons")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Name):
            self._check_builtin(function, is_call=True)
        elif isinstance(function, ast.Attribute):
            self._check_attribute(function, is_call=True)
            is_type = isinstance(function.value, ast.Name) and function.value.id in TYPES
            self._typed += is_type
            self.visit(function.value)
            self._typed -= is_type
        else:
            self.visit(function)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            is_type = isinstance(function, ast.Name) and function.id in ("isinstance", "cast")
            is_sorter = isinstance(function, ast.Name) and function.id in ("sorted", "min", "max")
            is_sorter |= isinstance(function, ast.Attribute) and function.attr == "sort"
            if isinstance(argument, ast.Lambda) and is_sorter:
                self._check_arguments(argument.args)
                self.visit(argument.body)
                continue
            self._typed += is_type
            self.visit(argument)
            self._typed -= is_type

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._refuse(node, "lambda stands only as the key of sorted, sort, min and max")

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._check_builtin(node, is_call=False)
        elif node.id in _BUILTIN_NAMES:
            self._refuse(node, f"{node.id} is the name of a built-in")

    def _check_builtin(self, node: ast.Name, *, is_call: bool) -> None:
        name = node.id
        if name in _BUILTIN_NAMES and name not in _ALLOWED_BUILTINS:
            self._refuse(node, f"{name} is not among the built-ins of contracts")
        elif name in GUARDED_BUILTINS and not is_call and not (self._typed and name in TYPES):
            self._refuse(node, f"{name} is only for calls and types")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._check_attribute(node, is_call=False)
        self.visit(node.value)

    def _check_attribute(self, node: ast.Attribute, *, is_call: bool) -> None:
        name, owner = node.attr, node.value
        if not isinstance(node.ctx, ast.Load):
            self._refuse(node, "objects are not changed: what lasts must be state")
        if isinstance(owner, ast.Name) and owner.id == "msgspec" and name != "Meta":
            self._refuse(node, "of msgspec only Meta is allowed")
        if name in _BUILTIN_ATTRIBUTES and name not in _ALLOWED_ATTRIBUTES:
            self._refuse(node, f".{name} is not among the methods of contracts")
        elif name in GUARDED_METHODS | KEYED_METHODS and not is_call:
            self._refuse(node, f".{name} is only for calls")
        on_type = isinstance(owner, ast.Name) and owner.id in TYPES and ast.unparse(node)
        if on_type and not (is_call and on_type in ("bytes.fromhex", "int.from_bytes")):
            self._refuse(node, f"{on_type} is not allowed: call it on a value")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.slice, ast.Slice) and not isinstance(node.ctx, ast.Load):
            self._refuse(node, "a slice is not assigned to")
        is_type = isinstance(node.value, ast.Name) and node.value.id in TYPES
        self._typed += is_type
        self.generic_visit(node)
        self._typed -= is_type

    def visit_Starred(self, node: ast.Starred) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._refuse(node, "* is not assigned to")
        self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        if node.conversion != -1:
            self._refuse(node, "!r, !s and !a are not allowed")
        if node.format_spec is not None and not _FORMAT.fullmatch(ast.unparse(node.format_spec)[2:-1]):
            self._refuse(node, "a format is a width of at most 99 and d, x or X")
        self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        is_revert = isinstance(raised, ast.Name) and raised.id in _RAISED
        if node.cause is not None or not (raised is None or is_revert):
            self._refuse(node, "raise Revert, or the one that was caught again")
        self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:
        if node.finalbody:
            self._refuse(node, "finally could swallow the meter's stop")
        for handler in node.handlers:
            if not (isinstance(handler.type, ast.Name) and handler.type.id == "Revert"):
                self._refuse(handler, "only Revert is caught")
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name != "msgspec" or alias.asname:
                self._refuse(node, f"import {alias.name} is not among the imports of contracts")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        allowed = ALLOWED_IMPORTS.get(node.module or "", frozenset())
        for alias in node.names:
            if node.level or alias.name not in allowed or alias.asname:
                self._refuse(node, f"from {node.module} import {alias.name} is not among the imports of contracts")

    def _check_names(self, node: ast.AST) -> None:
        """Check every identifier: none with two underscores in front, one only for what belongs to ``self``."""
        for field in ("id", "attr", "name", "arg", "asname"):
            name = getattr(node, field, None)
            if not isinstance(name, str):
                continue
            if name.startswith("__"):
                self._refuse(node, f"{name}: names do not begin with two underscores")
            elif field == "attr" and name.startswith("_"):
                owner = getattr(node, "value", None)
                if not (isinstance(owner, ast.Name) and owner.id == "self"):
                    self._refuse(node, f".{name} is private")
            elif name in _BUILTIN_NAMES and isinstance(node, ast.arg):
                self._refuse(node, f"{name} is the name of a built-in")
