"""Flags from dataclasses: every one of every preset, and what a line may look like."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from ddpm_jax.arguments import TrainArgs
from ddpm_jax.errors import UserError
from ddpm_jax.parsing import FLAT, POSITIONAL, Command, _options
from ddpm_jax.presets import PRESETS


@dataclass(frozen=True)
class Inner:
    """Within."""

    size: int = 1
    word: Literal["a", "b"] | None = None
    yes: bool = True


@dataclass(frozen=True)
class Outer:
    """Around."""

    kind: Annotated[Literal["x", "y"], POSITIONAL]
    names: Annotated[tuple[str, ...], POSITIONAL] = ()
    inner: Inner = field(default_factory=Inner)
    flat: Annotated[Inner, FLAT] = field(default_factory=Inner)
    own: Annotated[str, "--other"] = ""
    path: Path | None = None
    rates: tuple[float, ...] | None = None
    maybe: bool | None = None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x", Outer("x")),
        ("y p q", Outer("y", ("p", "q"))),
        ("y --size 3 p", Outer("y", ("p",), flat=Inner(3))),
        ("x --inner.size=-2 --inner.no-yes", Outer("x", inner=Inner(-2, None, False))),
        ("x --no-yes --yes --word b", Outer("x", flat=Inner(1, "b", True))),
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
        ("", r"prog needs KIND\. See prog --help\."),
        ("z", "KIND must be one of x, y; got 'z'"),
        ("x --maybe false", r"--maybe must be True or False or None; got 'false'"),
        ("x --rates 1 fast", "--rates must be a number; got 'fast'"),
        ("x --inner.yes=no", r"--inner\.yes takes no value; got 'no'\. --inner\.no-yes"),
        ("x --size 99999999999999999999x", "--size must be a whole number"),
        ("x --sizes 3", r"Did you mean '--size'\?"),
        ("x --inner.wrod b", r"Did you mean '--inner.word'\?"),
    ],
)
def test_what_a_line_may_not_say(line, shown):
    with pytest.raises(UserError, match=shown):
        Command(Outer, "prog").parse(line.split())


@pytest.mark.parametrize("name", ["digits", "spiral", "mnist-convnext", "fashion-annotated"])
def test_every_flag_of_a_preset_takes_its_own_default(name):
    """As help shows it: the config is the preset's again."""
    command = Command(TrainArgs, "prog", {"config": PRESETS[name]})
    line = ["--out", "run"]
    for option in _options(TrainArgs, command.defaults):
        if option.path[0] != "config":
            continue
        if option.hint is bool:
            line.append(option.flag if option.default else option.negation)
        else:
            value = option.default
            line += [option.flag, *map(str, value)] if isinstance(value, tuple) else [option.flag, str(value)]
    assert len(line) > 100
    assert command.parse(line).config == PRESETS[name]


def test_the_defaults_may_be_chosen_after_the_line_is_read():
    command = Command(TrainArgs, "prog", {"config": PRESETS["digits"]})
    given = command.read(["--out", "run", "--train.lr", "0.5"])
    assert given == {("out",): Path("run"), ("config", "train", "lr"): 0.5}
    assert Command(TrainArgs, "prog", {"config": PRESETS["digits-flow"]}).make(given).config.process.kind == "flow"
