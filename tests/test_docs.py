"""What the pages mark as runnable runs; the marks mean what scripts/check_docs.py says."""

import re
import subprocess
import sys
from pathlib import Path

import check_docs
import pytest

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


def test_every_mark_of_the_documentation_can_be_followed():
    assert all(check_docs.blocks(page) for page in check_docs.pages())


def test_files_that_pages_name_exist():
    there = [f"/{path.relative_to(ROOT).as_posix()}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
            assert any(path.endswith(f"/{name}") for path in there), f"{page}: {name}"


@pytest.mark.slow
@pytest.mark.parametrize("page", check_docs.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_page_shows_runs(page):
    command = [sys.executable, str(ROOT / "scripts" / "check_docs.py"), str(page)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
