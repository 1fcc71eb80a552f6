"""Command lines from dataclasses: a flag for every field, at any depth, of the field's type and default; their help and errors.

A field's metadata may be FLAT (of a dataclass: its fields' flags have no prefix), POSITIONAL (no flag: its place in the line says
what it is), or a flag of its own, as "--parallel". Free of jax.
"""

import ast
import dataclasses
import inspect
import itertools
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ddpm_jax.errors import UserError, meant

FLAT, POSITIONAL = "flat", "positional"
HELP = ("-h", "--help", "--help-all")
"""Flags that ask for help; the last for all of it."""
_NO = "no-"
_KINDS: dict[Any, tuple[str, str]] = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("TEXT", "text"),
    Path: ("PATH", "a path"),
    bool: ("{True, False}", "True or False"),  # beside None; alone it has two flags
    types.NoneType: ("None", "None"),
}
"""What stands for a value in help, and what it must be in messages."""
_COLUMN = 30
_WIDTH = 120


class HelpShown(Exception):
    """Help was asked for, and is printed; there is nothing to do."""


@dataclass(frozen=True)
class Option:
    """One thing that a command takes."""

    path: tuple[str, ...]
    """The fields that lead to it."""
    flag: str
    """As --train.lr; of a positional one its name."""
    hint: Any
    """Its type."""
    default: Any
    """dataclasses.MISSING: it is required."""
    owner: type
    """The dataclass that it is a field of."""

    @property
    def positional(self) -> bool:
        """Whether its place says what it is."""
        return not self.flag.startswith("--")

    @property
    def negation(self) -> str:
        """Of a bool: the flag that says no."""
        head, _, last = self.flag.removeprefix("--").rpartition(".")
        return f"--{head}.{_NO}{last}" if head else f"--{_NO}{last}"

    @property
    def several(self) -> bool:
        """Whether it takes any number of values."""
        return any(typing.get_origin(hint) is tuple for hint in _alternatives(self.hint))


@dataclass(frozen=True)
class Command:
    """What a command takes: the fields of a dataclass.

    kind: the dataclass. prog: the command up to its options, in messages. defaults: of fields of `kind`, in place of its own.
    basics: the flags that --help shows, in order; none: all. last: a heading, and the fields that --help-all shows below it, last.
    """

    kind: type
    prog: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    basics: Sequence[str] = ()
    last: tuple[str, frozenset[str]] = ("", frozenset())

    def parse(self, rest: Sequence[str], about: str = "") -> Any:
        """The dataclass that a command line describes.

        Raises:
            HelpShown: help was asked for. about: what it begins with, in place of the dataclass's docstring.
            UserError: an unknown flag, a value of another type, something missing; or the dataclass refuses its fields.
        """
        return self.make(self.read(rest, about))

    def read(self, rest: Sequence[str], about: str = "") -> dict[tuple[str, ...], Any]:
        """What is given, by path; as `parse`, but the defaults may be chosen afterwards."""
        if asked := set(HELP).intersection(rest):
            print(self.help(every="--help-all" in asked, about=about or inspect.cleandoc(self.kind.__doc__ or "")))
            raise HelpShown
        options = list(_options(self.kind, self.defaults))
        named = {option.flag: (option, True) for option in options if not option.positional}
        named |= {option.negation: (option, False) for option in options if option.hint is bool}
        given: dict[tuple[str, ...], Any] = {}
        loose: list[str] = []
        left = list(rest)
        while left:
            token = left.pop(0)
            if not _is_flag(token):
                loose.append(token)
                continue
            flag, equals, value = token.partition("=")
            flag = flag.replace("_", "-")
            if flag not in named:
                raise UserError(f"{self.prog} has no option {flag}.{_meant_flag(flag, named)}{self._see}")
            option, yes = named[flag]
            if option.hint is bool:
                if equals:
                    raise UserError(f"{flag} takes no value; got {value!r}. {option.negation} is its opposite.")
                given[option.path] = yes
                continue
            texts = [value] if equals else []
            while not equals and left and not _is_flag(left[0]) and (option.several or not texts):
                texts.append(left.pop(0))
            given[option.path] = _value(option, texts)
        for option in options:
            if option.positional and loose:
                texts, loose = (loose, []) if option.several else (loose[:1], loose[1:])
                given[option.path] = _value(option, texts)
        if loose:
            raise UserError(f"{self.prog} has no place for {loose[0]!r}.{self._see}")
        return given

    def make(self, given: Mapping[tuple[str, ...], Any]) -> Any:
        """The dataclass with what is given.

        Raises:
            UserError: something required is missing, or the dataclass refuses its fields.
        """
        for option in _options(self.kind, self.defaults):
            if option.default is dataclasses.MISSING and option.path not in given:
                what = option.flag.upper() if option.positional else f"{option.flag} {_metavar(option.hint)}"
                about = _texts(option.owner).get(option.path[-1], "").rstrip(".")
                raise UserError(f"{self.prog} needs {what}{about and f' ({about})'}.{self._see}")
        start = {name: value for name, value in _defaults(self.kind, self.defaults) if value is not dataclasses.MISSING}
        return self.kind(**_filled(start, given))

    @property
    def _see(self) -> str:
        return f" See {self.prog} --help."

    def help(self, *, every: bool, about: str) -> str:
        """The text of --help, or where every option is wanted of --help-all."""
        options = list(_options(self.kind, self.defaults))
        title, late = self.last
        shown = [o for o in options if every or not self.basics or o.positional or o.flag in self.basics]
        if not every and self.basics:
            shown.sort(key=lambda option: self.basics.index(option.flag) if option.flag in self.basics else -1)
        groups: dict[str, list[Option]] = {}
        for option in sorted(shown, key=lambda option: option.path[-1] in late):
            heading = "Options" if not every or option.owner is self.kind else _first_line(option.owner)
            groups.setdefault(title if option.path[-1] in late else heading, []).append(option)
        width = min(_WIDTH, shutil.get_terminal_size().columns)
        places = "".join(
            f" [{option.flag.upper()}{' ...' * option.several}]" for option in options if option.positional
        )
        needed = "".join(
            f" {o.flag} {_metavar(o.hint)}" for o in options if o.default is dataclasses.MISSING and not o.positional
        )
        lines = [f"usage: {self.prog}{places}{needed} [options]", ""]
        lines += [
            line for part in about.split("\n\n") for line in (*textwrap.wrap(part, width, break_on_hyphens=False), "")
        ]
        for heading, members in groups.items():
            lines += [f"{heading.rstrip('.')}:", *(line for option in members for line in _told(option, width)), ""]
        if len(shown) < len(options):
            lines.append(f"These are the first of {len(options)} options: {self.prog} --help-all shows every one.")
        return "\n".join(lines).rstrip()


def _options(kind: type, defaults: Mapping[str, Any], path: tuple[str, ...] = (), prefix: str = "") -> Iterable[Option]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for name, default in _defaults(kind, defaults):
        hint, marks = hints[name], list[str]()
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)
        if dataclasses.is_dataclass(default):  # its own kind, not the union of those that the hint allows
            inner = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
            below = prefix if FLAT in marks else f"{prefix}{name.replace('_', '-')}."
            yield from _options(type(default), inner, (*path, name), below)
            continue
        flag = name if POSITIONAL in marks else f"--{prefix}{name.replace('_', '-')}"
        flag = next((mark for mark in marks if mark.startswith("--")), flag)
        yield Option((*path, name), flag, hint, default, kind)


def _defaults(kind: type, defaults: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for field in dataclasses.fields(kind):
        if field.name in defaults:
            yield field.name, defaults[field.name]
        elif field.default_factory is not dataclasses.MISSING:
            yield field.name, field.default_factory()
        else:
            yield field.name, field.default


def _filled(start: Mapping[str, Any], given: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The fields `start` with what is given laid over them: every dataclass that changes is made, and checks itself, once."""
    found = dict(start)
    deeper: dict[str, dict[tuple[str, ...], Any]] = {}
    for (name, *below), value in given.items():
        if below:
            deeper.setdefault(name, {})[tuple(below)] = value
        else:
            found[name] = value
    for name, values in deeper.items():
        before = start[name]
        inner = {field.name: getattr(before, field.name) for field in dataclasses.fields(before)}
        found[name] = type(before)(**_filled(inner, values))
    return found


# Values -------------------------------------------------------------------------------------------------------------


def _is_flag(token: str) -> bool:
    """Whether a part of the line is a flag: it begins with a hyphen, and is neither a number nor one alone."""
    if not token.startswith("-") or token == "-":
        return False
    try:
        float(token)
    except ValueError:
        return True
    return False


def _value(option: Option, texts: Sequence[str]) -> Any:
    what = option.flag.upper() if option.positional else option.flag
    if option.several:
        for hint in _alternatives(option.hint):
            if hint is types.NoneType and list(texts) == ["None"]:
                return None
        (items,) = (typing.get_args(hint)[0] for hint in _alternatives(option.hint) if hint is not types.NoneType)
        return tuple(_one(items, text, what) for text in texts)
    if not texts:
        raise UserError(f"{what} needs a value: {_allowed(option.hint)}.")
    return _one(option.hint, texts[0], what)


def _one(hint: Any, text: str, what: str) -> Any:
    for alternative in _alternatives(hint):
        if alternative is types.NoneType:
            if text == "None":
                return None
        elif typing.get_origin(alternative) is Literal:
            if text in typing.get_args(alternative):
                return text
        elif alternative is bool:
            if text in ("True", "False"):
                return text == "True"
        elif alternative is not Path or text:
            try:
                value = alternative(text)
            except (ValueError, OverflowError):
                continue
            if value == value:  # not NaN
                return value
    choices = [word for alternative in _alternatives(hint) for word in typing.get_args(alternative)]
    raise UserError(f"{what} must be {_allowed(hint)}; got {text!r}.{meant(text, choices)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, None first, or the hint alone."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return (hint,)
    return tuple(sorted(typing.get_args(hint), key=lambda kind: kind is not types.NoneType))


def _allowed(hint: Any) -> str:
    words = []
    for kind in reversed(_alternatives(hint)):
        if typing.get_origin(kind) is Literal:
            words.append("one of " + ", ".join(typing.get_args(kind)))
        else:
            words.append(_KINDS[kind][1])
    return " or ".join(words)


def _meant_flag(flag: str, named: Iterable[str]) -> str:
    """The flag that one resembles: of that last name, or spelt alike."""
    last = flag.lstrip("-").rpartition(".")[2]
    same = [known for known in named if last and known.lstrip("-").rpartition(".")[2] == last]
    return f" Did you mean {' or '.join(same)}?" if same else meant(flag, named)


# Help ---------------------------------------------------------------------------------------------------------------


def _told(option: Option, width: int) -> list[str]:
    """The lines of one option: its flag, what it is, and its default, where that says anything."""
    name = option.flag.upper() if option.positional else option.flag
    default = option.default
    if option.hint is bool:
        left, said = (f"{name}, {option.negation}", "yes") if default else (name, "")
    else:
        left = name if option.positional else f"{name} {_metavar(option.hint)}"
        said = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    if default is dataclasses.MISSING or default is None:  # the text says what happens then
        said = ""
    text = _texts(option.owner).get(option.path[-1], "") + (f" (default: {said})" if said else "")
    body = textwrap.wrap(text, max(width - _COLUMN - 2, 20), break_on_hyphens=False)
    if len(left) + 2 > _COLUMN or not body:
        head = textwrap.wrap(left, max(width - 2, 20), subsequent_indent="    ", break_on_hyphens=False)
        return [f"  {line}" for line in head] + [" " * (_COLUMN + 2) + line for line in body]
    return [f"  {left:<{_COLUMN}}{body[0]}"] + [" " * (_COLUMN + 2) + line for line in body[1:]]


def _metavar(hint: Any) -> str:
    words = []
    for kind in reversed(_alternatives(hint)):
        if typing.get_origin(kind) is tuple:
            words.append(f"[{_metavar(typing.get_args(kind)[0])} ...]")
        elif typing.get_origin(kind) is Literal:
            words.append("{" + ", ".join(typing.get_args(kind)) + "}")
        else:
            words.append(_KINDS[kind][0])
    return " | ".join(words)


def _first_line(kind: type) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or kind.__name__).split("\n\n")[0].split())


def _texts(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, those of what it inherits included."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        except (OSError, TypeError):  # an installation without sources
            continue
        body = typing.cast(ast.ClassDef, tree).body
        for line, after in itertools.pairwise(body):
            match line, after:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found
