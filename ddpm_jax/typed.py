"""Frozen dataclasses from JSON that anybody may have written: each value of its declared type, or refused by name."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from ddpm_jax.errors import UserError, meant
from ddpm_jax.named import Named, default_of, options_of

T = TypeVar("T")


def build(kind: type[T], tree: Any, name: str) -> T:
    """The dataclass `kind` from a JSON object, as `named.tree_of` makes one; fields that are not there take their defaults.

    name: of the object, in messages: a field is called "name.field".

    Raises:
        UserError: it is no object, a field is unknown or missing, a value has another type, or the dataclass refuses it.
    """
    options = dict(value_of(dict[str, Any], tree, name))
    if issubclass(kind, Named) and options.pop(kind.family, kind.name) != kind.name:
        raise UserError(f"{name}.{kind.family} must be {kind.name}; got {tree[kind.family]!r}.")
    made, known = _built(kind, options, name)
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(known)}.{meant(option, known)}")
    return made()


def _built(kind: Any, options: Mapping[str, Any], name: str) -> tuple[Callable[[], Any], list[str]]:
    """What makes the dataclass of those options that are its own; and their names."""
    hints, given, known = typing.get_type_hints(kind), dict[str, Callable[[], Any]](), list[str]()
    for field in options_of(kind):
        default = default_of(field)
        if field.metadata.get("beside"):
            chosen = value_of(str, options.get(default.family, default.name), f"{name}.{default.family}")
            given[field.name], theirs = _built(_member(default, chosen, name), options, name)
            known += [default.family, *theirs]
            continue
        known.append(field.name)
        if field.name in options:
            value = value_of(hints[field.name], options[field.name], f"{name}.{field.name}")
            given[field.name] = functools.partial(_same, value)
        elif default is dataclasses.MISSING:
            raise UserError(f"{name} needs {field.name!r}, which is missing.")
    return lambda: kind(**{key: make() for key, make in given.items()}), known


def _same(value: Any) -> Any:
    return value


def _member(family: Named, chosen: str, name: str) -> type[Named]:
    try:
        return family.member(chosen)
    except UserError as error:
        raise UserError(f"{name}.{error}") from error


def value_of(hint: Any, value: Any, name: str) -> Any:
    """A JSON value as the type that a hint says: lists become tuples, whole numbers floats where those are wanted.

    hint: bool, int, float, str, None, Literal, dict[str, Any], tuple[X, ...], or a union of such.

    Raises:
        UserError: it is of another type (names it).
    """
    try:
        return _convert(hint, value)
    except _OtherTypeError as error:
        raise UserError(f"{name} must be {_told(hint)}; got {_shown(value)}.") from error


class _OtherTypeError(Exception):
    """A value does not fit the hint."""


def _convert(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _convert(argument, value)
            except _OtherTypeError:
                continue
    elif origin is Literal:
        if type(value) is str and value in arguments:
            return value
    elif origin is tuple:
        if type(value) is list:
            return tuple(_convert(arguments[0], item) for item in value)
    elif origin is dict:
        if isinstance(value, Mapping):
            return value
    elif hint is float:
        # a number too large for a float is none
        if type(value) is float and not math.isnan(value):
            return value
        if type(value) is int and abs(value) < 2**1023:
            return float(value)
    elif hint is int:
        if type(value) is int and abs(value) < 2**63:
            return value
    elif type(value) is hint:  # bool, str, None
        return value
    raise _OtherTypeError


def _told(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_told, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list of {_told(arguments[0])}"
    known = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
    return known.get(hint, "an object")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
