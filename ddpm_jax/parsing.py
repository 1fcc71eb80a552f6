"""What tyro makes of a command line, as `ddpm` says it: a mistake in one line, --help short and --help-all whole."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from ddpm_jax.errors import UserError, meant
from ddpm_jax.named import Named, names_of

HELP = ("-h", "--help", "--help-all")
"""Flags that ask for help; the last for all of it."""


class HelpShown(Exception):
    """Help was asked for, and is printed; there is nothing to do."""


@dataclass(frozen=True)
class Command:
    """What a command takes: the fields of a dataclass.

    kind: the dataclass. prog: the command up to its options, in messages. defaults: of fields of `kind`, in place of its own.
    basics: the fields that --help shows, as "config.train.lr"; none: all.
    """

    kind: type
    prog: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    basics: Collection[str] = ()

    def parse(self, rest: Sequence[str], about: str = "") -> Any:
        """The dataclass that a command line describes.

        Raises:
            HelpShown: help was asked for. about: what it begins with, in place of the dataclass's docstring.
            UserError: an unknown flag, a value of another type, something missing; or the dataclass refuses its fields.
        """
        self.show_help(rest, about)
        return _called(self.prog, self._tyro, args=_hyphenated(rest))

    def known(self, rest: Sequence[str]) -> Any:
        """The dataclass by what is known to it in a command line of more options, which are passed over.

        Raises:
            UserError: a value of another type, or for a flag that takes none.
        """
        args = _hyphenated(rest)
        switches = {f"--{field.name}" for field in dataclasses.fields(self.kind) if field.type is bool}
        for flag, equals, value in (part.partition("=") for part in args):
            if equals and flag in switches:  # to tyro the value would be one of the options that are passed over
                raise UserError(f"{flag} takes no value; got {value!r}. See {self.prog} --help.")
        return _called(self.prog, self._tyro, args=args, return_unknown_args=True)[0]

    def show_help(self, rest: Sequence[str], about: str = "") -> None:
        """Prints help where it is asked for.

        Raises:
            HelpShown: it is.
        """
        asked = set(HELP).intersection(rest)
        if not asked:
            return
        short = bool(self.basics) and "--help-all" not in asked
        with contextlib.suppress(SystemExit):
            text = about or inspect.cleandoc(self.kind.__doc__ or "")
            self._tyro(["--help"], given=_hyphenated(rest), description=text, short=short)
        if short:
            print(f"\nThese are the most used options; {self.prog} --help-all shows every one.")
        raise HelpShown

    def _tyro(self, args: Sequence[str], *, given: Sequence[str] = (), short: bool = False, **options: Any) -> Any:
        """args: what is parsed. given: what else says which members of families are chosen."""
        rules = _Rules(self, [*given, *args], short)
        config = (tyro.conf.AvoidSubcommands,)  # of a network: the options of the one that is there
        return tyro.cli(self.kind, prog=self.prog, registry=rules.registry, config=config, args=list(args), **options)


class _Rules:
    """Tyro's rules for dataclasses, but that options of a Named field stand beside the flag that chooses it; what help shows."""

    def __init__(self, command: Command, line: Sequence[str], short: bool):
        self.command, self.line, self.short = command, line, short
        self.registry = ConstructorRegistry()
        self.registry.struct_rule(self._of_struct)
        self._paths: dict[Any, str] = {
            command.kind: ""
        }  # to each dataclass's fields; tyro asks for the outer ones first
        self._within = False

    def _of_struct(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self._within or not dataclasses.is_dataclass(info.type):
            return None
        path = self._paths.get(info.type, "")
        spec = self._expanded(info, path)
        if not isinstance(info.default, Named):
            return spec
        flag = self._choice(info.default, path, inspect.cleandoc(info.type.__doc__ or "").partition("\n")[0])

        def instantiate(**values: Any) -> Any:
            del values[flag.name]
            return spec.instantiate(**values)

        return StructConstructorSpec(instantiate, (flag, *spec.fields))

    def _expanded(self, info: StructTypeInfo, path: str) -> StructConstructorSpec:
        spec, known = self._of_tyro(info), {field.name: field for field in dataclasses.fields(info.type)}
        fields, beside = list[StructFieldSpec](), dict[str, tuple[StructConstructorSpec, str]]()
        for field in spec.fields:
            marks, default = known[field.name].metadata, field.default
            if info.type is self.command.kind:
                default = self.command.defaults.get(field.name, default)
            if marks.get("beside") and isinstance(default, Named):
                member = self._chosen(default, path)
                theirs = self._expanded(dataclasses.replace(info, type=type(member), default=member), path)
                beside[field.name] = theirs, default.family
                fields += [self._choice(member, path, field.helptext), *theirs.fields]
            elif isinstance(default, Named):
                member = self._chosen(default, f"{path}{field.name}.")
                fields.append(
                    self._shown(dataclasses.replace(field, type=type(member), default=member), path + field.name)
                )
            elif not marks.get("derived"):
                fields.append(self._shown(dataclasses.replace(field, default=default), path + field.name))

        def instantiate(**values: Any) -> Any:
            for name, (theirs, family) in beside.items():
                values.pop(family)
                values[name] = theirs.instantiate(**{part.name: values.pop(part.name) for part in theirs.fields})
            return spec.instantiate(**values)

        return StructConstructorSpec(instantiate, tuple(fields))

    def _of_tyro(self, info: StructTypeInfo) -> StructConstructorSpec:
        self._within = True
        spec = ConstructorRegistry.get_struct_spec(info)
        self._within = False
        assert isinstance(spec, StructConstructorSpec)
        return spec

    def _shown(self, field: StructFieldSpec, path: str) -> StructFieldSpec:
        """A field as help shows it."""
        default, hint = field.default, cast(Any, field.type)
        part = type(default) if dataclasses.is_dataclass(default) else hint
        if dataclasses.is_dataclass(part):
            self._paths[part] = f"{path}."
        elif self.short and path not in self.command.basics:
            hint = Annotated[hint, tyro.conf.Suppress]
        if default in (None, (), ""):
            hint = Annotated[hint, tyro.conf.arg(help_behavior_hint="")]  # the text says what happens then
        return dataclasses.replace(field, type=hint, default=default)

    def _choice(self, of: Named, path: str, helptext: Any) -> StructFieldSpec:
        """The flag that chooses a member of a family."""
        members = cast(Any, Literal[tuple(of.members)])
        return self._shown(StructFieldSpec(of.family, members, of.name, helptext), path + of.family)

    def _chosen(self, of: Named, path: str) -> Named:
        """The member that the command line names, with its own defaults; or as it is.

        Raises:
            UserError: an option of another member.
        """
        name = _value(self.line, _flag(path + of.family))
        found = of if name in (None, of.name) or name not in of.members else of.members[name]()
        others = {option for member in of.members.values() for option in names_of(member)} - {*names_of(found)}
        given = {part.partition("=")[0] for part in self.line}
        for option in sorted(others):
            if _flag(path + option) in given:
                having = [name for name, member in of.members.items() if option in names_of(member)]
                raise UserError(
                    f"{_flag(path + option)} belongs to {_flag(path + of.family)} {' and '.join(having)}; got {found.name}."
                )
        return found


def _hyphenated(rest: Sequence[str]) -> list[str]:
    """A line with flags as they are written in help; tyro reads --a_b as well, but does not look for what is meant by it."""
    return [re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), part) for part in rest]


def _flag(path: str) -> str:
    """How a field is called on the command line."""
    return "--" + path.removeprefix("config.").removeprefix("how.").replace("_", "-")


def _value(args: Sequence[str], flag: str) -> str | None:
    """What a line gives to a flag, the last time that it does; None: nothing."""
    for index in reversed(range(len(args))):
        if args[index] == flag and index + 1 < len(args):
            return args[index + 1]
        if args[index].startswith(f"{flag}="):
            return args[index].partition("=")[2]
    return None


def _called(prog: str, parse: Callable[..., Any], **options: Any) -> Any:
    """What tyro parses; what it would print and exit for is raised."""
    said = io.StringIO()
    try:
        with _wide(), contextlib.redirect_stderr(said):
            return parse(**options)
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, UserError):  # what a dataclass says of its fields
            cause = cause.__context__
        raise cause or UserError(f"{_one_line(said.getvalue())} See {prog} --help.") from None


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """So that tyro breaks no line of a message."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(said: str) -> str:
    """A message of tyro's without its frame: what is wrong, and the flags that it names, without their help."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    lines = "\n".join(line.strip(" │") for line in plain.splitlines()[1:])  # the first is a title
    first, *others = [part for part in map(str.strip, re.split(r"^[-─╰╯]+$", lines, flags=re.M)) if part] or [""]
    text = " ".join(first.partition("Got errors:")[0].split()).rstrip(".") + "."
    if choice := re.search(r"choice '(.*?)'.* one of \((.*)\)", text):
        text += meant(choice[1], re.findall(r"'([^']*)'", choice[2]))
    for part in others:
        flags = [line for line in part.splitlines() if line.startswith("--")]
        if flags:
            text += f" {part.splitlines()[0].replace('Argument helptext', 'Usage')} {', '.join(flags)}."
    return text
