"""The README's Python runs as it is printed, but for fewer steps, and its commands exist."""

import re
from pathlib import Path

from ddpm_jax.cli import COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text()


DRAWN, TRAINED = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_pretrained_digits_are_drawn():
    names: dict = {}
    exec(compile(DRAWN, "README.md", "exec"), names)
    assert names["images"].shape == (10, 8, 8, 1) and names["images"].dtype == "uint8"
    assert names["images"].std() > 50


def test_the_api_in_15_lines_runs():
    block = TRAINED
    for number, fewer in (("range(200)", "range(2)"), ("num_steps=50", "num_steps=8"), ("dim=32", "dim=8")):
        assert number in block, "the README changed: change this test with it"
        block = block.replace(number, fewer)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["images"].shape == (10, 8, 8, 1)
    assert names["frames"].shape == (8, 10, 8, 8, 1)
    assert int(names["state"].step) == 2


def test_the_api_is_15_lines():
    assert len([line for line in TRAINED.splitlines() if line.strip() and "import" not in line]) <= 15


def test_every_command_and_file_named_exists():
    for command in re.findall(r"^ddpm (\w+)", README, flags=re.MULTILINE):
        assert command in COMMANDS
    root = Path(__file__).parents[1]
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / link).exists(), link
