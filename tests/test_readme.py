"""The README begins with what a newcomer needs, its Python runs as it is printed, but for fewer steps, and its commands exist."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax.cli import COMMANDS, DOORS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


DRAWN, TRAINED = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def section(title: str) -> str:
    """What stands below a heading, up to the next one."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_pretrained_digits_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(DRAWN, "README.md", "exec"), names)
    assert names["x_0"].shape == (10, 8, 8, 1)
    with Image.open("digits.png") as picture:
        assert picture.width > 10 * 8 and np.asarray(picture.convert("L")).std() > 50


def test_the_three_nouns_are_15_lines_above_all_tables():
    assert len(DRAWN.splitlines()) <= 15
    assert README.index(DRAWN) < re.search(r"^\|", README, flags=re.MULTILINE).start()
    words = section("Three nouns").partition("```")[0]
    assert re.findall(r"\*(\w+)\*", words) == ["process", "schedule", "denoiser", "sampler"]


def test_it_says_at_once_for_whom_it_is_not():
    before = README.partition("\n## ")[0]
    assert "**Not for you**" in before and "diffusers" in before and "latent diffusion" in before
    assert before.index("![") < before.index("**Not for you**")


def test_there_is_a_page_for_each_door_and_it_begins_with_a_block_that_runs():
    doors = re.findall(r"^\d\. \[\*\*(.*?)\*\*\]\((.*?)\)", section("Three doors"), flags=re.MULTILINE)
    assert len(doors) == len(DOORS) == 3
    start = (ROOT / "docs" / "index.md").read_text()
    for title, path in doors:
        page = (ROOT / path).read_text()
        assert page.startswith(f"# {title}\n")
        assert re.search(r"^<!-- run.*-->\n```sh\n", page.partition("\n## ")[0], flags=re.MULTILINE), path
        assert "\n## Next\n" in page
        assert f"]({Path(path).relative_to('docs')})" in start


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
    named = set(re.findall(r"(?:^|`)ddpm ([a-z]+)", README, flags=re.MULTILINE))
    assert len(named) > 8 and named <= set(COMMANDS), named - set(COMMANDS)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
