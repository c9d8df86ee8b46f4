"""Python source text: where a function is in it, its canonical form, and the names it takes from outside.

Pure functions of text; ``reach.py`` walks live objects with them. The canonical form is a dump of our own, since what
``ast.dump`` and ``ast.unparse`` write differs from one Python version to the next.
"""

from __future__ import annotations

import ast
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

Node: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
Dotted: TypeAlias = tuple[str, ...]
"""A name and the attributes taken from it: ``helpers.ops.scale`` is ("helpers", "ops", "scale")."""

_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_LAYOUT = frozenset({"ctx", "kind", "type_comment"})
_FILLS = frozenset(
    (
        "add",
        "append",
        "appendleft",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "popleft",
        "remove",
        "update",
    )
)
_LOOKS_UP = frozenset(("get",))
_DOES_BOTH = frozenset(("setdefault",))


class Definition(NamedTuple):
    """A function, lambda or class in a file; ``line`` is its first, decorators included."""

    qualname: str
    line: int
    node: Node


class Import(NamedTuple):
    """What an import statement binds: ``attribute`` of ``module``, or ``module`` itself where that is "".

    ``loads`` is the module that the statement imports (``import a.b`` binds ``a``), ``level`` its leading dots.
    """

    module: str
    loads: str
    level: int = 0
    attribute: str = ""


class References(NamedTuple):
    """What a definition takes from outside itself.

    ``paths`` are sorted; ``assigned`` are names outside that it rebinds (``global``, ``nonlocal``), which are state
    rather than constants; ``imports`` maps the names that its own import statements bind. ``stored`` are the attributes
    of what is outside that it sets, ``filled`` the containers that it changes, ``memos`` those that it looks up, too;
    ``decorators`` are those of what it defines.
    """

    paths: tuple[Dotted, ...]
    assigned: frozenset[str]
    imports: dict[str, Import]
    stored: frozenset[Dotted] = frozenset()
    filled: frozenset[Dotted] = frozenset()
    memos: frozenset[Dotted] = frozenset()
    decorators: frozenset[Dotted] = frozenset()


@lru_cache(maxsize=128)
def parsed(text: str) -> ast.Module:
    """A module's syntax tree; an empty one where the text is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import of the file has warned already
            return ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


@lru_cache(maxsize=128)
def definitions(text: str) -> tuple[Definition, ...]:
    """Every definition in a module's text."""
    found: list[Definition] = []
    pending: list[tuple[ast.AST, str]] = [(parsed(text), "")]
    while pending:
        parent, prefix = pending.pop()
        for child in ast.iter_child_nodes(parent):
            if not isinstance(child, _NODES):
                pending.append((child, prefix))
                continue
            qualname = prefix + ("<lambda>" if isinstance(child, ast.Lambda) else child.name)
            decorators = [] if isinstance(child, ast.Lambda) else child.decorator_list
            found.append(Definition(qualname, min(n.lineno for n in (child, *decorators)), child))
            pending.append((child, qualname + ("." if isinstance(child, ast.ClassDef) else ".<locals>.")))
    return tuple(found)


def find_function(text: str, code: CodeType) -> Node | None:
    """The definition that ``code`` was compiled from; None where the text has none, or several that fit."""
    found = [
        d.node
        for d in definitions(text)
        if d.line == code.co_firstlineno and d.qualname.rpartition(".")[2] == code.co_name and _same_names(d.node, code)
    ]
    if code.co_name == "<lambda>" and len(found) > 1:
        found = _by_position(found, code)
    alike = len(found) == 1 or len({form(node) for node in found}) == 1
    return found[0] if alike else None


def find_class(text: str, qualname: str, lines: Sequence[int]) -> ast.ClassDef | None:
    """The class of that name, the one around ``lines`` where there are several; None where there is none."""
    found = [d.node for d in definitions(text) if d.qualname == qualname and isinstance(d.node, ast.ClassDef)]
    around = [n for n in found if all(n.lineno <= line <= (n.end_lineno or 0) for line in lines)]
    return around[-1] if around else None


def _same_names(node: Node, code: CodeType) -> bool:
    if isinstance(node, ast.ClassDef):
        return False
    a = node.args
    stars = [x for x in (a.vararg, a.kwarg) if x is not None]
    names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, *stars)]
    return tuple(names) == code.co_varnames[: len(names)] and len(a.kwonlyargs) == code.co_kwonlyargcount


def _by_position(lambdas: Sequence[Node], code: CodeType) -> list[Node]:
    """Those of several lambdas on a line whose body is what ``code`` runs, the innermost first."""
    spans = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if None not in (line, end_line, column, end_column) and (line, column) != (end_line, end_column)
    ]
    bodies: dict[Node, Any] = {n: _span(n.body) for n in lambdas if isinstance(n, ast.Lambda)}
    if spans:
        fit = [n for n, (start, end) in bodies.items() if all(start <= s and e <= end for s, e in spans)]
        return sorted(fit, key=lambda n: bodies[n][0], reverse=True)[:1]
    # Some versions give no positions to a lambda that returns a constant, and none does with -X no_debug_ranges.
    return [n for n in bodies if isinstance(n.body, ast.Constant) and n.body.value in code.co_consts]


def _span(node: ast.expr) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


@lru_cache(maxsize=4096)
def form(definition: ast.AST) -> str:
    """``canonical`` of a definition that is asked for again."""
    return canonical(definition)


def canonical(node: Any) -> str:
    """A syntax tree as text, equal for code that differs in layout, comments and docstrings only."""
    if isinstance(node, ast.JoinedStr):  # Python 3.12 ends some with an empty string
        return f"JoinedStr({canonical([v for v in node.values if getattr(v, 'value', None) != ''])})"
    if isinstance(node, ast.AST):
        fields = ((n, v) for n, v in ast.iter_fields(node) if n not in _LAYOUT and v is not None and v != [])
        return f"{type(node).__name__}({', '.join(f'{n}={canonical(_undressed(v))}' for n, v in fields)})"
    if isinstance(node, list):
        return f"[{', '.join(canonical(item) for item in node if not _is_docstring(item))}]"
    return ascii(node)


def _undressed(value: Any) -> Any:
    """A list of statements or targets without what a formatter may change: the order of imports, ``del (a, b)``."""
    if not isinstance(value, list):
        return value
    if len(value) == 1 and isinstance(value[0], ast.Tuple) and isinstance(value[0].ctx, ast.Del):
        return value[0].elts
    imports: list[ast.stmt] = []
    ordered: list[Any] = []
    for node in value:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports += _single(node)
        else:
            ordered += [*sorted(imports, key=canonical), node]
            imports = []
    return [*ordered, *sorted(imports, key=canonical)]


def _single(node: ast.Import | ast.ImportFrom) -> list[ast.stmt]:
    """``import a, b`` as two statements."""
    if isinstance(node, ast.Import):
        return [ast.Import([alias]) for alias in node.names]
    return [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def segment(text: str, node: Node) -> str:
    """The definition as it is written in ``text``, decorators included, without its indentation."""
    if isinstance(node, ast.Lambda):
        return ast.get_source_segment(text, node) or ast.unparse(node)
    first = min(n.lineno for n in (node, *node.decorator_list))
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


@lru_cache(maxsize=4096)
def references(node: Node) -> References:
    """The names that ``node`` reads from the scopes around it and from its own imports."""
    free, assigned = _free_names(node)
    imports = _imports(node)
    paths = {path for path in _paths(node) if path[0] in free or path[0] in imports}
    bodies = [n for n in node.body if isinstance(n, _NODES)] if isinstance(node, ast.ClassDef) else [node]
    changes = [[{p for p in found if p[0] in free} for found in _changes(body)] for body in bodies]
    stored, filled, memos = (frozenset[Dotted]().union(*(change[i] for change in changes)) for i in range(3))
    return References(
        tuple(sorted(paths)), frozenset(assigned), imports, stored, filled, memos, decorators=_decorators(node)
    )


def _decorators(node: Node) -> frozenset[Dotted]:
    used = [d for n in ast.walk(node) for d in getattr(n, "decorator_list", ())]
    return frozenset(_dotted(d.func if isinstance(d, ast.Call) else d) for d in used) - {()}


def _free_names(node: Node) -> tuple[set[str], set[str]]:
    text = ast.unparse(node)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            top = symtable.symtable(text, "kernel", "exec")
        except SyntaxError:  # "nonlocal" of a function around this one, which is not in the text
            text = re.sub(r"^(\s*)nonlocal ", r"\1global ", text, flags=re.MULTILINE)
            top = symtable.symtable(text, "kernel", "exec")
    outside = [(table, s) for table in _tables(top) for s in table.get_symbols() if s.is_global()]
    free = {s.get_name() for _, s in outside if s.is_referenced()}
    return free, {s.get_name() for table, s in outside if s.is_assigned() and table.get_type() != "module"}


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _paths(node: Node) -> Iterator[Dotted]:
    inner = {id(n.value) for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    for outer in ast.walk(node):
        if id(outer) not in inner and (path := _dotted(outer)):
            yield path


def _changes(node: Node) -> tuple[set[Dotted], set[Dotted], set[Dotted]]:
    """The attributes that it sets, the containers that it changes, and those of them that it looks up as well."""
    stored: set[Dotted] = set()
    filled: set[Dotted] = set()
    read: set[Dotted] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript):
            (read if isinstance(part.ctx, ast.Load) else filled).add(_dotted(part.value))
        elif isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Load):
            stored.add(_dotted(part))
        elif isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Subscript):
            read.add(_dotted(part.target.value))
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            where, method = _dotted(part.func.value), part.func.attr
            filled |= {where} if method in _FILLS | _DOES_BOTH else set()
            read |= {where} if method in _LOOKS_UP | _DOES_BOTH else set()
    return stored - {()}, filled - {()}, (filled & read) - {()}


def _dotted(node: ast.AST) -> Dotted:
    """The dotted name that an expression is; () for any other."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else ()


def _imports(node: Node) -> dict[str, Import]:
    bound: dict[str, Import] = {}
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                bound[alias.asname or module] = Import(module, alias.name)
        elif isinstance(statement, ast.ImportFrom):
            module = statement.module or ""
            for alias in statement.names:
                bound[alias.asname or alias.name] = Import(module, module, statement.level, alias.name)
    return bound
