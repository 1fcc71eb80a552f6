"""Flags from dataclasses: every one of every preset, and what a line may look like."""

import os
import re
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from ddpm_jax.arguments import Flat, RunFolderArgs, TrainArgs
from ddpm_jax.errors import UserError
from ddpm_jax.named import Named, options_of
from ddpm_jax.parsing import Command, HelpShown
from ddpm_jax.presets import preset


@dataclass(frozen=True)
class Inner:
    """Within."""

    size: int = 1
    word: Literal["a", "b"] | None = None
    yes: bool = True

    def __post_init__(self):
        if self.size < 0:
            raise UserError(f"size must not be negative; got {self.size}.")


@dataclass(frozen=True)
class Flattened(Inner):
    """Within, without a prefix."""


@dataclass(frozen=True)
class Outer:
    """Around."""

    kind: Annotated[Literal["x", "y"], tyro.conf.Positional]
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    inner: Inner = field(default_factory=Inner)
    flat: Annotated[Flattened, Flat] = field(default_factory=Flattened)
    own: Annotated[str, tyro.conf.arg(name="other")] = ""
    path: Path | None = None
    rates: tuple[float, ...] | None = None
    maybe: bool | None = None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x", Outer("x")),
        ("y p q", Outer("y", ("p", "q"))),
        ("y --size 3 p", Outer("y", ("p",), flat=Flattened(3))),
        ("x --inner.size=2 --inner.no-yes", Outer("x", inner=Inner(2, None, False))),
        ("x --no-yes --yes --word b", Outer("x", flat=Flattened(1, "b", True))),
        ("x --word b --word None", Outer("x")),
        ("x --other o --path p/q", Outer("x", own="o", path=Path("p/q"))),
        ("x --path=None --rates -1 2e-3 -inf", Outer("x", rates=(-1.0, 0.002, float("-inf")))),
        ("x --rates", Outer("x", rates=())),
        ("x --rates 1 --rates None", Outer("x")),
        ("x --maybe False", Outer("x", maybe=False)),
        ("x --maybe True", Outer("x", maybe=True)),
    ],
)
def test_what_a_line_means(line, expected):
    assert Command(Outer, "prog").parse(line.split()) == expected


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("", r"Missing from prog: \{x,y\} kind .* See prog --help\."),
        ("z", r"'z' for argument 'kind'\. Expected one of \('x', 'y'\)\. See prog --help\."),
        ("x --maybe false", r"'false' for argument '--maybe'\. .*'False'.*\. Did you mean 'False'\?"),
        ("x --rates 1 fast", r"parsing --rates: .*\['1', 'fast'\]\. Usage: --rates .*FLOAT"),
        ("x --size 99999999999999999999x", r"parsing --size: .*'99999999999999999999x'\. Usage: --size INT\."),
        ("x --sizes 3", r"--sizes, 3\. Perhaps you meant: --size INT\."),
        ("x --inner.wrod b", r"Perhaps you meant: --inner\.word {None,a,b}\."),
        ("x --inner.size -1", r"^size must not be negative; got -1\.$"),
        ("x --inner.size=1 --path --size 2", r"'--path'|Unrecognized options: 2"),
    ],
)
def test_what_a_line_may_not_say(line, shown):
    with pytest.raises(UserError, match=shown):
        Command(Outer, "prog").parse(line.split())


@pytest.mark.parametrize("name", ["digits", "spiral", "mnist-convnext", "fashion-annotated"])
def test_every_flag_of_a_preset_takes_its_own_default(name):
    """As help shows it: the config is the preset's again."""
    command = Command(TrainArgs, "prog", {"config": preset("digits")})
    own = Command(TrainArgs, "prog", {"config": preset(name)})
    line = ["--out", "run", *flags(preset(name), "--")]
    assert len(line) > 100
    assert own.parse(line).config == preset(name)
    if type(preset(name).model) is type(preset("digits").model):
        assert command.parse(line).config == preset(name)


def flags(config, prefix):
    if isinstance(config, Named):
        yield from (f"{prefix}{config.family}", config.name)
    for part in options_of(config):
        value, flag = getattr(config, part.name), prefix + part.name.replace("_", "-")
        if is_dataclass(value):
            yield from flags(value, prefix if part.metadata.get("beside") else f"{flag}.")
        elif isinstance(value, bool) and "None" not in str(part.type):
            yield flag if value else f"{prefix}no-{flag.removeprefix(prefix)}"
        else:
            yield from (flag, *map(str, value)) if isinstance(value, tuple) else (flag, str(value))


def test_a_part_of_a_line_is_read_before_the_rest():
    line = ["--train.lr", "-1", "--out", "run", "--data.classes", "a", "b", "--resume", "--train.steps=x"]
    assert Command(RunFolderArgs, "prog").known(line) == RunFolderArgs(Path("run"), resume=True)
    with pytest.raises(UserError, match="Missing value for argument '--out'"):
        Command(RunFolderArgs, "prog").known(["--out"])
    with pytest.raises(UserError, match="--overwrite takes no value; got 'no'"):
        Command(RunFolderArgs, "prog").known(["--train.steps=no", "--out=no", "--overwrite=no"])


def test_a_message_does_not_depend_on_the_terminal(monkeypatch):
    said = set()
    for columns in ("20", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(UserError) as raised:
            Command(Outer, "prog").parse(["x", "--inner.wrod", "a/long/path" * 9])
        said.add(str(raised.value))
        assert os.environ["COLUMNS"] == columns
    assert len(said) == 1 and "a/long/path" * 9 in said.pop()


def test_help_shows_the_basics(capsys):
    command = Command(Outer, "prog", {"inner": Inner(7)}, basics=("inner.size", "flat.word", "kind", "own"))
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(HelpShown):
            command.parse(["x", "--nonsense", flag], about="About it.")
        out = capsys.readouterr().out
        assert "About it." in out and "prog" in out
        shown[flag] = re.findall(r"^[│ ] --(\w[\w.-]+)", out, flags=re.M)
        assert "(default: 7)" in out and "None)" not in out
    assert shown["--help"] == ["other", "word", "inner.size"]
    assert [flag for flag in shown["--help-all"] if "inner" in flag] == ["inner.size", "inner.word", "inner.yes"]
    assert len(shown["--help-all"]) == 10
