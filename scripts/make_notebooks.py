"""Make the notebooks of docs/notebooks of their examples, with what comes of them and a cell that lets them run elsewhere."""

import argparse
import base64
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
PACKAGES = {"points": "ddpm-jax", "digits": "ddpm-jax", "own_pictures": "ddpm-jax", "verify_port": "ddpm-jax[torch]"}
"""The examples that are notebooks as well, and what each installs where it is missing."""


_PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" width="106" height="20" role="img">
<rect width="106" height="20" rx="3" fill="#37474f"/>
<text x="53" y="14" fill="#fff" text-anchor="middle" font-family="sans-serif" font-size="11">Open in Colab</text>
</svg>"""


def badge(name: str, project: dict[str, dict[str, str]]) -> str:
    """What it begins with: Colab's badge, which opens the notebook where the project's repository is known to lie on GitHub.

    project: the table of that name in pyproject.toml.
    """
    # within the notebook, so that showing it asks no other machine
    image = f"![Open in Colab](data:image/svg+xml;base64,{base64.b64encode(_PICTURE.encode()).decode()})"
    repository = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)/?", project.get("urls", {}).get("Repository", ""))
    if repository:
        there = f"github/{repository[1]}/blob/main/{NOTEBOOKS.relative_to(ROOT)}/{name}.ipynb"
        return f"[{image}](https://colab.research.google.com/{there})"
    return f"[{image}](https://colab.research.google.com/) Download [this notebook]({name}.ipynb), and upload it there."


def install(name: str) -> str:
    """The first cell of code."""
    return f'''from importlib.util import find_spec

if find_spec("ddpm_jax") is None:
    %pip install --quiet "{PACKAGES[name]}"'''


def make(name: str) -> None:
    """Write a notebook, run from top to bottom; minutes, most of them of training.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
        RuntimeError: a cell warns.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    notebook = jupytext.read(ROOT / "examples" / f"{name}.py")
    notebook.cells[0].source = f"{badge(name, project)}\n\n{notebook.cells[0].source}"
    notebook.cells.insert(1, nbformat.v4.new_code_cell(install(name)))
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for number, cell in enumerate(notebook.cells):  # the same in every making
        cell.id, cell.metadata = f"cell-{number}", {}
    NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": ROOT}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    describe_pictures(notebook)
    nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")


def describe_pictures(notebook: Any) -> None:
    """Every picture's alternative text is the first sentence of the text above its cell; it is kept once, as PNG."""
    above = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            said = re.sub(r"^#.*$|[`*$]", "", cell.source, flags=re.M)
            above = re.split(r"(?<=[.:!?])\s", " ".join(said.split()), maxsplit=1)[0].rstrip(":") or above
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)
                output.metadata["image/png"] = {"alt": above}


def _is_progress(output: Any) -> bool:
    """Whether it went to standard error: how far a training is, which says nothing once it is over."""
    if output.get("name") != "stderr":
        return False
    if "Warning" in output.text:
        raise RuntimeError(output.text)
    return True


def main() -> None:
    """Make those that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}; all unless given")
    names = parser.parse_args().names or PACKAGES
    for name in names:
        if name not in PACKAGES:
            parser.error(f"names must be of {', '.join(PACKAGES)}; got {name}")
    for name in names:
        make(name)


if __name__ == "__main__":
    main()
