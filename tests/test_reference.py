"""Every public name is documented and has its place in the reference, and the site's pages are those of its navigation."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INTERNAL = {
    "archives",
    "arguments",
    "bound",
    "class_names",
    "checks",
    "cache",
    "cli",
    "compilation",
    "display",
    "edits",
    "files",
    "hub",
    "huge_pages",
    "launch",
    "named",
    "parsing",
    "paths",
    "pictures",
    "pretrained",  # weights, and no module
    "run_config",
    "run_names",
    "processors",
    "progress",
    "restores",
    "signals",
    "typed",
}
"""Modules of ddpm_jax that serve the others and the command line; all others, and all packages, are public."""
TARGETS = re.findall(r"^::: (\S+)$", "".join(p.read_text() for p in (DOCS / "reference").glob("*.md")), flags=re.M)


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_modules() -> list[str]:
    found = [f"ddpm_torch_ref.{name}" for name in exported("ddpm_torch_ref")]
    for path in sorted((ROOT / "ddpm_jax").iterdir()):
        if not path.name.startswith("_") and path.stem not in INTERNAL and (path.suffix == ".py" or path.is_dir()):
            found.append(f"ddpm_jax.{path.stem}")
    return found


def exported(module: str) -> list[str]:
    """`__all__`, or what is defined at the top of a module that has none."""
    tree = ast.parse(file_of(module).read_text())
    for line in tree.body:
        if isinstance(line, ast.Assign) and names_of(line) == ["__all__"]:
            return ast.literal_eval(line.value)
    return [name for line in tree.body for name in names_of(line) if not name.startswith("_")]


def names_of(line: ast.stmt) -> list[str]:
    if isinstance(line, ast.FunctionDef | ast.ClassDef):
        return [line.name]
    targets = line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def undocumented(body: list[ast.stmt], wanted: list[str], explained: str = "") -> list[str]:
    """Of the wanted names that a body defines, those without a docstring, and fields that neither it nor their class explains."""
    found = []
    for line, after in zip(body, [*body[1:], None], strict=True):
        for name in set(names_of(line)).intersection(wanted):
            if isinstance(line, ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(line) or ""
            else:
                follows = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                text = after.value.value if follows else re.search(rf"\b{name}\b", explained)
            found += [] if text else [name]
            if isinstance(line, ast.ClassDef):
                fields = [field for part in line.body if isinstance(part, ast.AnnAssign) for field in names_of(part)]
                found += [f"{name}.{field}" for field in undocumented(line.body, fields, text)]
    return found


def home_of(module: str, name: str) -> tuple[str, str]:
    """Where a name that a module exports is defined, and what it is called there."""
    body = ast.parse(file_of(module).read_text()).body
    # what is imported at first use stands under `if TYPE_CHECKING`
    deferred = [line for block in body if isinstance(block, ast.If) for line in block.body]
    for line in [*body, *deferred]:
        if isinstance(line, ast.ImportFrom):
            for alias in line.names:
                if (alias.asname or alias.name) == name:
                    return str(line.module), alias.name
    return module, name


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_documented(module):
    missing = []
    for name in exported(module):
        home, there = home_of(module, name)
        if file_of(f"{home}.{there}").exists():  # a module
            assert f"{home}.{there}" in TARGETS
            continue
        missing += undocumented(ast.parse(file_of(home).read_text()).body, [there])
    assert not missing, f"{module}: a docstring is missing for {', '.join(missing)}"


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_on_a_page_of_the_reference(module):
    wanted = {f"{module}.{name}" for name in exported(module)}
    missing = set() if module in TARGETS else wanted.difference(TARGETS)
    assert not missing, f"docs/reference has no ::: {', '.join(missing)}"


def test_everything_on_a_page_of_the_reference_is_there():
    assert len(TARGETS) == len(set(TARGETS))
    for target in TARGETS:
        module, _, name = target.rpartition(".")
        assert file_of(target).exists() or name in exported(module), target


def test_the_navigation_names_every_page_once():
    text = (ROOT / "mkdocs.yml").read_text()
    (nav,) = re.findall(r"^nav:\n((?:[ -].*\n)+)", text, flags=re.M)
    pages = re.findall(r"(\S+\.(?:md|ipynb))$", nav, flags=re.M)
    there = {str(path.relative_to(DOCS)) for kind in ("*.md", "*.ipynb") for path in DOCS.rglob(kind)}
    assert sorted(pages) == sorted(there)


def test_what_is_undocumented_is_found():
    source = 'A = 1\nB = 2\n"""Two."""\ndef f(): ...\nclass C:\n    """With x: one."""\n    x: int\n    y: int\n'
    assert undocumented(ast.parse(source).body, ["A", "B", "f", "C"]) == ["A", "f", "C.y"]
