"""The README's Python runs as it is printed, but for fewer steps, and its commands exist."""

import re
from pathlib import Path

from ddpm_jax.cli import COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_api_in_15_lines_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for number, fewer in (("range(200)", "range(2)"), ("num_steps=50", "num_steps=8"), ("dim=32", "dim=8")):
        assert number in block, "the README changed: change this test with it"
        block = block.replace(number, fewer)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["images"].shape == (10, 8, 8, 1)
    assert names["frames"].shape == (8, 10, 8, 8, 1)
    assert int(names["state"].step) == 2


def test_the_api_is_15_lines():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip() and "import" not in line]) <= 15


def test_every_command_and_file_named_exists():
    for command in re.findall(r"^ddpm (\w+)", README, flags=re.MULTILINE):
        assert command in COMMANDS
    root = Path(__file__).parents[1]
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / link).exists(), link
