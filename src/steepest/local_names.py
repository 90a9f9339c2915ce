"""Python code in which what a function calls its own variables no longer shows."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
NOT_NUMBERED, FURTHER_OUT = "", None


def number_local_names(tree: ast.Module) -> None:
    """Call the variables of functions and comprehensions ``$0``, ``$1`` ..., in the order of their first appearance.

    Two sources that differ only in the names of such variables become equal, and no others do. Names that can be seen
    from outside stay: parameters, attributes, keywords, what a module or a class binds, what is imported or defined.

    >>> tree = ast.parse("def f(values):\\n    total = sum(v * v for v in values)\\n    return total")
    >>> number_local_names(tree)
    >>> print(ast.unparse(tree))
    def f(values):
        $0 = sum(($1 * $1 for $1 in values))
        return $0
    """
    names = _Names()
    names.visit(tree)
    names.numbering = True
    names.visit(tree)


class _Names(ast.NodeVisitor):
    """Visits each node in the scope in which Python evaluates it: first to see what scopes bind, then to number it."""

    def __init__(self) -> None:
        self.numbering = False
        self.numbers = 0
        self.inside: list[ast.AST] = []
        """The scopes around a node, outermost first: a module, classes, functions and comprehensions."""
        self.bound: dict[ast.AST, dict[str, str | None]] = {}
        """What a scope binds, each name with its new one, ``NOT_NUMBERED`` yet, or ``FURTHER_OUT`` if nonlocal."""

    def bind(self, name: str, scope: ast.AST) -> None:
        """A scope binds a variable; one of a module or a class keeps its name."""
        self.bound[scope].setdefault(name, NOT_NUMBERED if isinstance(scope, FUNCTIONS + COMPREHENSIONS) else name)

    def fix(self, name: str, value: str | None) -> None:
        """The innermost scope binds a name that stays as it is, or is bound further out."""
        self.bound[self.inside[-1]][name] = value

    def new(self, name: str) -> str:
        """What a variable is called from now on, seen from the innermost scope."""
        for scope in reversed(self.inside if self.numbering else []):
            visible = scope is self.inside[-1] or not isinstance(scope, ast.ClassDef)
            value = self.bound[scope].get(name) if visible else FURTHER_OUT
            if value == NOT_NUMBERED:
                value = self.bound[scope][name] = f"${self.numbers}"
                self.numbers += 1
            if value is not FURTHER_OUT:
                return value
        return name

    @contextmanager
    def scope(self, node: ast.AST) -> Iterator[None]:
        self.bound.setdefault(node, {})
        self.inside.append(node)
        yield
        self.inside.pop()

    def visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    # ------------------------------------------------------------------------------------------------------- scopes

    def visit_Module(self, node: ast.Module) -> None:
        with self.scope(node):
            self.visit_all(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.fix(node.name, node.name)
        self.visit_all([*node.decorator_list, *node.bases, *node.keywords])
        with self.scope(node):
            self.visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.fix(node.name, node.name)
        self.visit_all([*node.decorator_list, node.returns])
        self.visit_function(node, node.args, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit_function(node, node.args, [node.body])

    def visit_function(self, scope: ast.AST, arguments: ast.arguments, body: Iterable[ast.AST]) -> None:
        parameters = [node for node in ast.iter_child_nodes(arguments) if isinstance(node, ast.arg)]
        self.visit_all(
            [*arguments.defaults, *arguments.kw_defaults, *(parameter.annotation for parameter in parameters)]
        )
        with self.scope(scope):
            for parameter in parameters:
                self.fix(parameter.arg, parameter.arg)
            self.visit_all(body)

    def visit_comprehension_scope(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        first, *further = node.generators
        self.visit(first.iter)
        with self.scope(node):
            self.visit_all([first.target, *first.ifs, *further])
            self.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_scope

    # -------------------------------------------------------------------------------------------------------- names

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.bind(node.id, self.inside[-1])
        node.id = self.new(node.id)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """Inside a comprehension it binds in the function around it."""
        self.bind(node.target.id, next(s for s in reversed(self.inside) if not isinstance(s, COMPREHENSIONS)))
        self.visit(node.value)
        node.target.id = self.new(node.target.id)

    def visit_named(self, node: ast.ExceptHandler | ast.MatchAs | ast.MatchStar) -> None:
        if node.name is not None:
            self.bind(node.name, self.inside[-1])
            node.name = self.new(node.name)
        self.generic_visit(node)

    visit_ExceptHandler = visit_MatchAs = visit_MatchStar = visit_named

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest is not None:
            self.bind(node.rest, self.inside[-1])
            node.rest = self.new(node.rest)
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            self.fix(name, name)

    visit_ImportFrom = visit_Import

    def visit_Global(self, node: ast.Global) -> None:
        for name in node.names:
            self.fix(name, name)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        for name in node.names:
            self.fix(name, FURTHER_OUT)
        node.names = [self.new(name) for name in node.names]
