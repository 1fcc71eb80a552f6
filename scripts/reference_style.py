"""How the reference is made of the code: jaxtyping's shapes stay what is written, and arguments explained in prose stand out.

An extension of griffe, which mkdocstrings reads the code with; mkdocs.yml names it.
"""

import ast
import re
from typing import Any

import griffe

SHAPED = {"Bool", "Float", "Int", "Num", "UInt8"}


class ReferenceStyle(griffe.Extension):
    """Changes a module's syntax tree before griffe looks at it; the source that is shown stays as it is."""

    def on_module_node(self, *, node: ast.AST | griffe.ObjectNode, **_: Any) -> None:
        """Go through all of the module."""
        assert isinstance(node, ast.AST)
        for part in ast.walk(node):
            if isinstance(part, ast.Subscript) and getattr(part.value, "id", None) in SHAPED:
                _keep_shape(part)
            elif isinstance(part, ast.FunctionDef | ast.ClassDef):
                _mark_names(part)


class _Shape:
    """A string that is not one to griffe, which parses those."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f'"{self.text}"'


def _keep_shape(part: ast.Subscript) -> None:
    """Of Float[Array, "b *shape"]: griffe would take the string for an expression, b * shape."""
    if isinstance(part.slice, ast.Tuple) and isinstance(part.slice.elts[-1], ast.Constant):
        part.slice.elts[-1].value = _Shape(str(part.slice.elts[-1].value))  # type: ignore[assignment]


def _mark_names(part: ast.FunctionDef | ast.ClassDef) -> None:
    """In "labels: (B,) classes. clip: bound on x_0." set labels and clip in bold, where they are arguments or fields."""
    if isinstance(part, ast.FunctionDef):
        arguments = part.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    else:
        names = [
            line.target.id
            for line in part.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        ]
    text = part.body[0].value if isinstance(part.body[0], ast.Expr) else None
    if not names or not isinstance(text, ast.Constant) or not isinstance(text.value, str) or "Args:" in text.value:
        return
    any_name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    named = re.compile(rf"(^ *|[.;] )((?:{any_name})(?:(?:, | and | or )(?:{any_name}))*): ", re.M)
    text.value = named.sub(r"\1**\2**: ", text.value)
