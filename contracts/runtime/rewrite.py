"""Rewrites a contract's syntax tree so that it counts its steps and cannot outgrow them.

- Every function begins with a charge and counts its depth; every turn of a loop or comprehension charges.
  The charge is the number of statements and calls that the turn holds.
- Operators, built-ins and methods that can grow go through ``contracts.runtime.guards``.
- A generator expression becomes a list, so that no chain of iterators can form.
- A map at the module's top becomes one that cannot be changed.

The tree has passed ``contracts.runtime.lint``, so only what that allows is met here.
"""

import ast
from collections.abc import Sequence

from contracts.runtime.meter import DEPTH_MAX

GUARDED_BUILTINS = frozenset({
    "all", "any", "bytes", "dict", "divmod", "enumerate", "int", "list", "max", "min", "reversed", "sorted", "str",
    "sum", "tuple", "zip",
})  # fmt: skip
"""Built-ins whose calls go to ``contracts.runtime.guards.Builtins``."""

GUARDED_METHODS = frozenset({
    "clear", "copy", "count", "decode", "encode", "endswith", "extend", "find", "from_bytes", "fromhex", "hex",
    "index", "insert", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isupper", "join", "lower",
    "lstrip", "partition", "pop", "remove", "removeprefix", "removesuffix", "replace", "reverse", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "sort", "split", "splitlines", "startswith", "strip", "to_bytes", "update",
    "upper",
})  # fmt: skip
"""Methods whose calls go to ``contracts.runtime.guards.Methods``, whatever the receiver."""

KEYED_METHODS = frozenset({"get", "setdefault"})
"""Methods whose first argument may be a map's key."""

_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "__add__",
    ast.Sub: "__subtract__",
    ast.Mult: "__multiply__",
    ast.FloorDiv: "__floor_divide__",
    ast.Mod: "__modulo__",
    ast.Pow: "__power__",
    ast.LShift: "__shift_left__",
    ast.BitOr: "__bit_or__",
    ast.BitAnd: "__bit_and__",
    ast.BitXor: "__bit_xor__",
}

_ENTRY = f"""
__meter__.left -= STEPS
__meter__.depth += 1
try:
    if __meter__.left < 0 or __meter__.depth > {DEPTH_MAX}:
        __meter__.stop()
finally:
    __meter__.depth -= 1
"""

_TURN = """
__meter__.left -= STEPS
if __meter__.left < 0:
    __meter__.stop()
"""

_IN_PLACE_ITEM = """
__base__ = BASE
__place__ = PLACE
__base__[__place__] = VALUE
"""


def rewrite(tree: ast.Module) -> ast.Module:
    """Return the tree that runs; the given one is changed."""
    rewritten: ast.Module = _Rewriter().visit(tree)
    return ast.fix_missing_locations(rewritten)


def steps_of(nodes: Sequence[ast.AST]) -> int:
    """Return the statements and calls in these nodes, without those in the loops and functions they hold."""
    total = 0
    for node in nodes:
        total += isinstance(node, ast.stmt | ast.Call)
        if isinstance(node, ast.For):
            total += steps_of([node.iter, *node.orelse])
        elif isinstance(node, ast.While):
            total += steps_of(node.orelse)
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp):
            total += steps_of([node.generators[0].iter])
        elif not isinstance(node, ast.Lambda | ast.FunctionDef):
            total += steps_of(list(ast.iter_child_nodes(node)))
    return total


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _statements(template: str, steps: int) -> list[ast.stmt]:
    return ast.parse(template.replace("STEPS", str(steps))).body


def _tick(steps: int) -> ast.expr:
    return _call("__tick__", ast.Constant(steps))


def _is_plain(node: ast.expr) -> bool:
    """Tell whether an expression is surely an integer, a text or another constant."""
    if isinstance(node, ast.UnaryOp):
        return _is_plain(node.operand)
    is_length = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"
    return is_length or isinstance(node, ast.Constant | ast.JoinedStr)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


class _Rewriter(ast.NodeTransformer):
    """Rewrites every expression and statement of a module; annotations stay as they are."""

    def __init__(self) -> None:
        self._is_in_function = False

    # -- functions and loops ---------------------------------------------------------------------------

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        steps = 1 + steps_of(node.body)
        self._is_in_function = True
        body = [part for statement in node.body for part in self._many(statement)]
        self._is_in_function = False
        entry = _statements(_ENTRY, steps)
        guarded = entry[2]
        if isinstance(guarded, ast.Try):
            guarded.body += body
        documentation = node.body[:1] if ast.get_docstring(node) is not None else []
        node.body = [*documentation, *entry]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        steps = 1 + steps_of([node.body])
        node.body = ast.BoolOp(ast.And(), [_tick(steps), self.visit(node.body)])
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._loop(node, 1 + steps_of([node.test, *node.body]))

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._loop(node, 1 + steps_of(node.body))

    def _loop(self, node: ast.For | ast.While, steps: int) -> ast.AST:
        self.generic_visit(node)
        node.body = [*_statements(_TURN, steps), *node.body]
        return node

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.AST:
        return self.visit_ListComp(ast.ListComp(node.elt, node.generators))

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        return self._comprehension(node, node.generators, [node.elt])

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        changed = self._comprehension(node, node.generators, [node.key, node.value])
        node.key = self._key(node.key)
        return changed

    def _comprehension(
        self, node: ast.expr, generators: list[ast.comprehension], results: Sequence[ast.expr]
    ) -> ast.AST:
        steps = 1 + steps_of(results) + sum(steps_of(generator.ifs) for generator in generators)
        self.generic_visit(node)
        for generator in generators:
            generator.ifs = [_tick(steps), *generator.ifs]
        return node

    # -- operators -------------------------------------------------------------------------------------

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        cheap = isinstance(node.op, ast.Add | ast.Sub) and (_is_number(node.left) or _is_number(node.right))
        self.generic_visit(node)
        guard = _OPERATORS.get(type(node.op))
        return node if guard is None or cheap else _call(guard, node.left, node.right)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST | list[ast.stmt]:
        cheap = isinstance(node.op, ast.Add | ast.Sub) and _is_number(node.value)
        self.generic_visit(node)
        guard = "__add_in_place__" if isinstance(node.op, ast.Add) else _OPERATORS.get(type(node.op))
        if guard is None or cheap:
            return node
        target = node.target
        if isinstance(target, ast.Name):
            return ast.Assign([target], _call(guard, ast.Name(target.id, ast.Load()), node.value))
        if not isinstance(target, ast.Subscript):
            return node
        base, place, store = ast.parse(_IN_PLACE_ITEM).body
        if isinstance(base, ast.Assign) and isinstance(place, ast.Assign) and isinstance(store, ast.Assign):
            base.value, place.value = target.value, target.slice
            item = ast.Subscript(ast.Name("__base__", ast.Load()), ast.Name("__place__", ast.Load()), ast.Load())
            store.value = _call(guard, item, node.value)
        return [base, place, store]

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        operands = [node.left, *node.comparators]
        plain = [_is_plain(operand) for operand in operands]
        is_listed = isinstance(operands[-1], ast.Tuple) and all(map(_is_plain, operands[-1].elts))
        self.generic_visit(node)
        operands = [node.left, *node.comparators]
        if isinstance(node.ops[0], ast.In | ast.NotIn):
            if is_listed:
                return node
            found = _call("__contains__", operands[1], operands[0])
            return found if isinstance(node.ops[0], ast.In) else ast.UnaryOp(ast.Not(), found)
        for index, operator in enumerate(node.ops):
            if not (isinstance(operator, ast.Is | ast.IsNot) or plain[index] or plain[index + 1]):
                operands[index] = _call("__comparable__", operands[index])
        node.left, node.comparators = operands[0], operands[1:]
        return node

    # -- values ----------------------------------------------------------------------------------------

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        self.generic_visit(node)
        for keyword in node.keywords:
            if keyword.arg is None:
                keyword.value = _call("__mapping__", keyword.value)
        if isinstance(function, ast.Name) and function.id in GUARDED_BUILTINS:
            function.id = f"__guard_{function.id}__"
        elif isinstance(function, ast.Attribute) and function.attr in GUARDED_METHODS:
            name = ast.Constant(function.attr)
            return ast.Call(ast.Name("__invoke__", ast.Load()), [function.value, name, *node.args], node.keywords)
        elif isinstance(function, ast.Attribute) and function.attr in KEYED_METHODS and node.args:
            node.args[0] = self._key(node.args[0])
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.slice, ast.Slice):
            none: ast.expr = ast.Constant(None)
            bounds = [bound or none for bound in (node.slice.lower, node.slice.upper, node.slice.step)]
            return _call("__part__", node.value, *bounds)
        if self._is_in_function:
            node.slice = self._key(node.slice)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        self.generic_visit(node)
        for index, key in enumerate(node.keys):
            if key is None:
                node.values[index] = _call("__mapping__", node.values[index])
            else:
                node.keys[index] = self._key(key)
        return node if self._is_in_function else _call("__frozen__", node)

    def visit_Starred(self, node: ast.Starred) -> ast.AST:
        self.generic_visit(node)
        node.value = _call("__items__", node.value)
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        plain = isinstance(node.value, ast.Constant)
        node.value = self.visit(node.value)
        if not plain:
            node.value = _call("__text__" if node.format_spec is None else "__number__", node.value)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        node.target = self.visit(node.target)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        return node

    # -- helpers ---------------------------------------------------------------------------------------

    @staticmethod
    def _key(node: ast.expr) -> ast.expr:
        return node if _is_plain(node) else _call("__key__", node)

    def _many(self, statement: ast.stmt) -> list[ast.stmt]:
        changed = self.visit(statement)
        return changed if isinstance(changed, list) else [changed]
