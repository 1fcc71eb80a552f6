#!/usr/bin/env python
"""Count lines of Python without blank lines, comments and docstrings, by package, and name functions that are too large."""

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

MOST_PARAMETERS, MOST_LINES = 8, 60
Function = ast.FunctionDef | ast.AsyncFunctionDef
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def count(source: str) -> int:
    """Lines that hold code: any token that is no comment and no string standing as a statement of its own."""
    told = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - told)


def large_functions(source: str) -> list[str]:
    """Functions with more than 8 parameters, constructors and self excepted, or over 60 lines, as "name: what it has"."""
    found = []
    tree = ast.parse(source)
    methods = {id(part) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for part in node.body}
    for node in ast.walk(tree):
        if not isinstance(node, Function):
            continue
        own = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        if id(node) in methods and own and own[0].arg in ("self", "cls"):
            own = own[1:]
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if len(own) > MOST_PARAMETERS and node.name != "__init__":
            found.append(f"{node.name}: {len(own)} parameters")
        if lines > MOST_LINES:
            found.append(f"{node.name}: {lines} lines")
    return found


def main() -> None:
    """Print the table of a tree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="*", type=Path, default=[Path("ddpm_jax")], help="ddpm_jax unless given")
    for tree in parser.parse_args().trees:
        by_package: Counter[str] = Counter()
        large = []
        for path in sorted(tree.rglob("*.py")):
            source = path.read_text()
            by_package[str(path.parent)] += count(source)
            large += [f"  {path}: {function}" for function in large_functions(source)]
        for package, lines in by_package.items():
            print(f"{package:<40} {lines:>6}")
        print(f"{tree!s:<40} {by_package.total():>6} in all")
        if large:
            print(f"functions of over {MOST_PARAMETERS} parameters or {MOST_LINES} lines:", *large, sep="\n")


if __name__ == "__main__":
    main()
