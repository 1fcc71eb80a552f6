"""The examples run, and the notebooks hold what their examples say."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import make_notebooks
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
FEW = {"points": 100, "digits": 21, "own_pictures": 21, "custom_network": 21, "custom_sampler": 100, "finetune": 4}
"""Steps that an example is tried with, 2 where it is not named: more than its warm-up has, and whole calls of several."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_a_page_and_says_how_long_it_takes(example):
    assert len(example.read_text().splitlines()) < 100
    assert f"[{example.name}]({example.name})" in (ROOT / "examples" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path):
    steps = f"STEPS = {FEW.get(example.stem, 2)}"
    short = tmp_path / example.name
    short.write_text(re.sub(r"^STEPS = .*$", steps, example.read_text(), flags=re.MULTILINE))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, str(short)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def code_of_script(path: Path) -> list[str]:
    """The cells of a script in the percent format that hold code."""
    cells = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.MULTILINE)[1:]
    return [text.strip() for mark, text in zip(cells[::2], cells[1::2], strict=True) if "markdown" not in mark]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_example_run_from_top_to_bottom(notebook):
    first, *cells = json.loads(notebook.read_text())["cells"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    begins = f"{make_notebooks.badge(notebook.stem, project)}\n\n# "
    assert "".join(first["source"]).startswith(begins), "make notebooks"
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    code = [make_notebooks.install(notebook.stem), *code_of_script(ROOT / "examples" / f"{notebook.stem}.py")]
    assert ["".join(cell["source"]).strip() for cell in cells] == code, "make notebooks"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    shown = [output.get("data", {}) for output in outputs]
    assert any("image/png" in data or "<svg" in "".join(data.get("text/html", "")) for data in shown)
    assert notebook.stat().st_size < 300_000


def test_every_notebook_is_there_and_said_to_be():
    assert [notebook.stem for notebook in NOTEBOOKS] == sorted(make_notebooks.PACKAGES)
    for name in make_notebooks.PACKAGES:
        assert f"notebooks/{name}.ipynb)" in (ROOT / "examples" / "README.md").read_text()
        assert f"notebooks/{name}.ipynb\n" in (ROOT / "mkdocs.yml").read_text()


def test_a_badge_opens_the_notebook_where_the_repository_is_known():
    urls = {"urls": {"Repository": "https://github.com/owner/name"}}
    there = "https://colab.research.google.com/github/owner/name/blob/main/docs/notebooks/points.ipynb"
    assert make_notebooks.badge("points", urls).endswith(f")]({there})")
    elsewhere = make_notebooks.badge("points", {})
    assert "](https://colab.research.google.com/) Download [this notebook](points.ipynb)" in elsewhere


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_pictures_of_notebooks_say_what_they_show(notebook):
    """To those who cannot see them; and each is there once."""
    outputs = [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert all(len(output["metadata"]["image/png"]["alt"]) > 10 for output in pictures)
    assert not any("image/jpeg" in output.get("data", {}) for output in outputs)
