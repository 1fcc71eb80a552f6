"""What the pages mark as runnable runs; the marks mean what scripts/check_docs.py says."""

import ast
import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import check_docs
import full_length
import pytest

from ddpm_jax import cli

ROOT = Path(__file__).parents[1]
FENCE = "```"
FOLDERS = ("ddpm_jax", "ddpm_torch_ref", "scripts", "examples", "tests", "parity_tests")


@pytest.fixture
def page(tmp_path):
    def write(mark: str, code: str, kind: str = "sh") -> Path:
        path = tmp_path / "page.md"
        path.write_text(f"# Page\n\n{mark}\n{FENCE}{kind}\n{code}\n{FENCE}\n")
        return path

    return write


def test_a_marked_block_is_found_with_its_replacements(page):
    mark = "<!-- run: s/100/2/ ; s|a/b|c/d| -->"
    (block,) = check_docs.blocks(page(mark, "train --steps 100 --out a/b"))
    assert (block.kind, block.code, block.line) == ("sh", "train --steps 2 --out c/d\n", 4)


def test_a_block_without_a_mark_is_not_run(page):
    assert check_docs.blocks(page("Some words.", "rm -rf everything")) == []


@pytest.mark.parametrize(
    ("mark", "kind", "said"),
    [
        ("<!-- run: s/absent/x/ -->", "sh", "does not hold 'absent'"),
        ("<!-- run: s/one -->", "sh", "must be s/OLD/NEW/"),
        ("<!-- run -->", "text", "one of sh, python"),
        ("<!-- run -->\n", "sh", "one of sh, python"),
    ],
)
def test_a_mark_that_cannot_be_followed_is_an_error(page, mark, kind, said):
    with pytest.raises(ValueError, match=said):
        check_docs.blocks(page(mark, "true", kind))


@pytest.mark.parametrize(("code", "status"), [("true\necho done", 0), ("false\necho done", 1), ("false | true", 1)])
def test_sh_stops_at_the_first_command_that_fails(page, tmp_path, code, status):
    (block,) = check_docs.blocks(page("<!-- run -->", code))
    assert check_docs.run(block, tmp_path, 60).returncode == status


@pytest.fixture
def tabs(tmp_path, monkeypatch):
    """A page with a pair of tabs, in whose code lines may be left empty."""
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)

    def write(mark: str, *codes: str) -> Path:
        shown = "".join(
            f'=== "{number}"\n\n' + textwrap.indent(f"{FENCE}python\n{code}\n{FENCE}\n", " " * 4) + "\n"
            for number, code in enumerate(codes)
        )
        path = tmp_path / "page.md"
        path.write_text(f"# Page\n\n{mark}\n{shown}Words.\n\n    indented\n")
        return path

    return write


def test_a_block_of_each_tab_is_found(tabs):
    one, two = check_docs.blocks(tabs("<!-- run: within 1e-3 ; s/100/2/ -->", "if 1:\n\n    print(100)", "print(2)"))
    assert (one.code, one.line, one.within) == ("if 1:\n\n    print(2)\n", 6, None)
    assert (two.code, two.line, two.within) == ("print(2)\n", 14, 1e-3)


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ("print('mean 0.50000, x_1', [1, 2e-3])", "print('0.500004 of mean', (1.0, 0.002))", ""),
        ("print(0.5)", "print(0.50001)", "it prints 0.50001 where the tab before it prints 0.5"),
        ("print(0.5)", "print(-0.5)", "it prints -0.5 where the tab before it prints 0.5"),
        ("print(float('nan'))", "print(float('nan'))", "it prints nan where the tab before it prints nan"),
        ("print(0.5)", "print(0.5, 1)", "it prints 2 numbers, the tab before it 1"),
        ("print('x_0')", "print('x_0')", "it prints 0 numbers, the tab before it 0"),
        ("print(0.5)", "print(0.5); raise SystemExit(3)", "exit status 3"),
        ("import sys; print(1); print(2, file=sys.stderr)", "print(1)", ""),
    ],
)
def test_tabs_that_print_other_numbers_are_caught(tabs, capsys, one, two, said):
    assert check_docs.check(tabs("<!-- run: within 1e-5 -->", one, two), 60) is not bool(said)
    printed = capsys.readouterr().out
    assert said in printed and ("FAIL page.md:12" in printed) is bool(said)


@pytest.mark.parametrize(("shown", "right"), [("two: 0.50001", True), ("two: 0.51", False), ("two", False)])
def test_what_is_shown_below_tabs_is_what_they_print(tabs, capsys, shown, right):
    page = tabs("<!-- run: within 1e-4 -->", "print(0.5)", "print(0.5)")
    page.write_text(page.read_text().replace("Words.", f"{FENCE}text\n{shown}\n{FENCE}\n\nWords."))
    assert check_docs.check(page, 60) is right
    assert ("FAIL page.md:16" in capsys.readouterr().out) is not right


@pytest.mark.parametrize(
    ("mark", "codes"),
    [("<!-- run -->", ("1", "2")), ("<!-- run: within 1e-5 -->", ("1",)), ("<!-- run: within 1 ; within 2 -->", "12")],
)
def test_tabs_alone_say_how_near_they_are(tabs, mark, codes):
    with pytest.raises(ValueError, match="a mark says `within`, once, above tabs"):
        check_docs.blocks(tabs(mark, *codes))


def test_every_mark_of_the_documentation_can_be_followed():
    assert all(check_docs.blocks(page) for page in check_docs.pages())


def test_files_that_pages_name_exist():
    there = [f"/{path.relative_to(ROOT).as_posix()}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
            assert any(path.endswith(f"/{name}") for path in there), f"{page}: {name}"


GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in GLOSSARY.splitlines()
    if line.startswith("|") and not line.startswith(("| symbol |", "|---"))
]


def words_of(file: Path) -> set[str]:
    """What a module defines, takes, reads or spells out: its names and its strings of one word, without comments and docstrings."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        told = [getattr(node, field, None) for field in ("id", "arg", "attr", "name", "value")]
        found |= {word for word in told if isinstance(word, str) and word.isidentifier()}
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1].replace("`", ""))
def test_the_glossary_names_what_is_there(row):
    """Each row of the glossary has five cells, and its file holds the names in code."""
    symbol, name, formula, file, paper = row
    assert symbol and formula
    names, (path,) = re.findall(r"`([^`]+)`", name), re.findall(r"^`([^`]+)`$", file)
    module = ROOT / "ddpm_jax" / path
    assert names and module.is_file(), path
    assert set(names) <= words_of(module), f"{path} has no {set(names) - words_of(module)}"
    assert re.fullmatch(r"(\[?[\w&. ]+\d{4}(\]\(https://arxiv\.org/abs/\d{4}\.\d{5}\))?([,;] .*)?)?", paper), paper


def test_the_glossary_is_whole():
    """A paper without a link was linked above; the names that people look for are there."""
    names = {name for _, cell, *_ in ROWS for name in re.findall(r"`([^`]+)`", cell)}
    wanted = "betas alphas_cumprod x_0 eps v sigma snr t timesteps eta ema_decay scale sigma_data"
    assert names >= set(wanted.split())
    for _, _, _, _, paper in ROWS:
        cited = re.match(r"\[?([\w&. ]+ \d{4})", paper)
        assert not cited or f"[{cited[1]}](https://arxiv.org/abs/" in GLOSSARY, paper


MIGRATION = (ROOT / "docs" / "migration.md").read_text()
ASKED = (
    "train digits --process.schedule linear --sample.sampler ancestral", "train digits --process.schedule sigmoid_cumprod",
    "sample", "evaluate", "edit", "import", "convert",
)  # fmt: skip


@pytest.fixture
def ours():
    """The second column of the migration page's tables, and its commands."""
    rows = [line.strip("| ").split(" | ") for line in MIGRATION.splitlines() if line.startswith("| ")]
    assert len(rows) > 90 and all(len(row) == 2 for row in rows), [row for row in rows if len(row) != 2]
    return "\n".join([right for _, right in rows] + re.findall(r"^```sh\n(.*?)^```$", MIGRATION, re.M | re.S))


def test_the_options_of_the_migration_page_exist(ours, capsys):
    known = set()
    for command in ASKED:
        assert cli.main([*command.split(), "--help-all"]) == 0
        known |= set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    named = set(re.findall(r"--[a-z][\w.-]+", ours))
    assert len(named) > 50 and named <= known, named - known


def test_the_names_of_the_migration_page_exist(ours):
    named = set(
        re.findall(r"\b(processes|schedules|samplers|models|denoisers|training|data|editing|evaluation)\.(\w+)\(", ours)
    )
    assert len(named) > 15
    for module, name in named:
        assert hasattr(importlib.import_module(f"ddpm_jax.{module}"), name), f"{module}.{name}"


@pytest.mark.slow
@pytest.mark.parametrize("page", check_docs.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_page_shows_runs(page):
    command = [sys.executable, str(ROOT / "scripts" / "check_docs.py"), str(page)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


def test_the_tables_of_results_are_those_of_the_figures(tmp_path):
    """The page holds what its files of figures say, and would say something else if they did."""
    page = full_length.PAGE.read_text()
    assert full_length.written(page) == page
    told = {"preset": "spiral", "command": "ddpm train spiral --out runs/spiral", "steps": 40_000, "batch_size": 25}
    wasserstein = {"sliced_wasserstein": {"samples": 0.012, "real": 0.01}}
    trainings = [
        {"wall_s": 50.0 + k, "processor_s": 60.0, "loss": {"40000": 0.25}, "samples": [{"metrics": wasserstein}]}
        for k in range(3)
    ]
    (tmp_path / "spiral.json").write_text(json.dumps(told | {"trainings": trainings}))
    page = "<!-- made of the figures: {} -->\n<!-- until here -->\n"
    found = full_length.written("".join(page.format(name) for name in full_length.TABLES), tmp_path)
    for row in (
        "| 4 | `spiral` | loss 0.246 at 40,000, run here | loss 0.250 (0.250 to 0.250) at 40,000 | yes |",
        "| [`spiral`](results/spiral.json) | `train spiral` | 40,000 of 25 | 51 (50 to 52) | 60 (60 to 60) |",
        "| `spiral` | 40,000 | 0.250 (0.250 to 0.250) |  | 0.246 |",
        "| `spiral` | 0.0120 (0.0120 to 0.0120) | 0.0100 (0.0100 to 0.0100) | 1.20 (1.20 to 1.20) |",
    ):
        assert row in found.splitlines()


ENVIRONMENT = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]*)*")


def read_by(source: str) -> set[str]:
    """The environment variables that a Python program names: what is asked of os.environ, and every $NAME in its words."""
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Subscript):
            asked, of = [node.slice], node.value
        elif isinstance(node, ast.Compare):
            asked, of = [node.left], node.comparators[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked, of = node.args[:1], node.func if node.func.attr == "getenv" else node.func.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"\$([A-Z][A-Z0-9_]+)", node.value))
        if asked and re.fullmatch(r"os\.(environ|getenv)", ast.unparse(of)):
            for name in asked:
                # a name that is computed comes from a table of this file
                every = [name] if isinstance(name, ast.Constant) else list(ast.walk(tree))
                words = [str(word.value) for word in every if isinstance(word, ast.Constant)]
                found |= {word for word in words if ENVIRONMENT.fullmatch(word) and (len(every) == 1 or "_" in word)}
    return found


def test_what_is_read_of_the_environment_is_found():
    assert read_by("import os\nos.environ['A'] = os.environ.get('B', 'NO') + os.getenv('C')\n'D' in os.environ") == {
        *"ABCD"
    }
    assert read_by("import os\nNAMES = {'x': 'JAX_X', 'y': 'Y'}\nos.environ.get(NAMES[i])\n'$HF_HOME is read'") == {
        "JAX_X",
        "HF_HOME",
    }
    assert read_by("import os\nos.environ.setdefault('A', 'B_C')\nother['D_E']\n'F_G' in other") == {"A"}


def test_every_environment_variable_has_its_row():
    page = (ROOT / "docs" / "environment.md").read_text()
    told = set(re.findall(r"`([A-Z][A-Z0-9_]*)`", page))
    read = set()
    for file in [ROOT / "conftest.py", *(file for folder in FOLDERS[:3] for file in (ROOT / folder).rglob("*.py"))]:
        text = file.read_text()
        read |= read_by(text) if re.search(r"environ|getenv|\$[A-Z]", text) else set()
    shell = "".join(file.read_text() for file in (ROOT / "scripts" / "launch").glob("*.sh"))
    read |= set(re.findall(r"\$\{?([A-Z][A-Z_]+)", shell))
    read |= set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), flags=re.M))
    assert read - told == set(), "docs/environment.md says nothing of them"
    rows = set(
        re.findall(r"`([A-Z][A-Z0-9_]*)`", "".join(re.findall(r"^\|([^|]*)\|", page.split("\n## ")[1], flags=re.M)))
    )
    assert rows - read == set(), "nothing reads them"
