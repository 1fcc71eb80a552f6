"""How the reference is made of the code: jaxtyping's shapes stay what is written, and arguments explained in prose become lists.

An extension of griffe, which mkdocstrings reads the code with; mkdocs.yml names it.
"""

import ast
import inspect
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
                _list_names(part)


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


def _list_names(part: ast.FunctionDef | ast.ClassDef) -> None:
    """Make a list of "labels: (B,) classes. clip: bound on x_0.", where labels and clip are arguments or fields."""
    if isinstance(part, ast.FunctionDef):
        arguments = part.args
        listed = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
        title, names = "Parameters", [argument.arg for argument in listed if argument]
    else:
        fields = [line.target for line in part.body if isinstance(line, ast.AnnAssign)]
        title, names = "Fields", [target.id for target in fields if isinstance(target, ast.Name)]
    text = part.body[0].value if isinstance(part.body[0], ast.Expr) else None
    if names and isinstance(text, ast.Constant) and isinstance(text.value, str) and "Args:" not in text.value:
        text.value = _listed(inspect.cleandoc(text.value), names, title)


def _listed(text: str, names: list[str], title: str) -> str:
    """The text with a list in the place of what it says of the names, below a title as mkdocstrings writes it."""
    any_name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    named = re.compile(rf"(?:^|(?<=[.;])\s)((?:{any_name})(?:(?:, | and | or )(?:{any_name}))*): ", re.M)
    title = f'<span class="doc-section-title">{title}:</span>'
    written: list[str] = []
    for paragraph in text.split("\n\n"):
        is_section = re.match(r"\w+:\n", paragraph)  # as Raises is
        before, *told = [paragraph] if is_section else named.split(paragraph)
        if before:
            written.append(re.sub(";$", ".", before))
        if told and title not in written:
            written.append(title)
        items = [(re.sub(any_name, r"`\g<0>`", them), what) for them, what in zip(told[::2], told[1::2], strict=True)]
        if items:
            written.append("\n".join(f"- **{them}** – {what.strip().removesuffix(';')}" for them, what in items))
    return "\n\n".join(written)
