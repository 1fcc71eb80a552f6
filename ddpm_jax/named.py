"""Families of options: frozen dataclasses known by name, whose fields are what the command line and a run's config say of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ddpm_jax.errors import UserError, meant

BESIDE = {"beside": True}
"""Metadata of a field whose own options stand beside it, not under it: sampler, eta, steps, ..."""
DERIVED = {"derived": True}
"""Metadata of a field that is no option, since another decides it."""


class Named:
    """A family of dataclasses, `class Sampler(Named, family="sampler")`, whose members enter themselves by name.

    A member, `@dataclass(frozen=True) class DDIM(Sampler, name="ddim")`, needs a default for each of its fields. That is all: its
    name and its fields are then options of the command line and of a preset, and a run's config keeps them.
    """

    family: ClassVar[str]
    """What a member is, in messages."""
    members: ClassVar[dict[str, type[Any]]]
    """Every member by its name."""
    name: ClassVar[str] = ""
    """What a member is called; empty: nothing, and no config can hold it."""

    def __init_subclass__(cls, name: str = "", family: str = "", **options: Any):
        super().__init_subclass__(**options)
        if family:
            cls.family, cls.members = family, {}
        if name or "name" not in cls.__dict__:  # a family may declare it
            cls.name = name
        if name:
            cls.members[name] = cls

    @classmethod
    def member(cls, name: Any) -> type[Any]:
        """The member of that name.

        Raises:
            UserError: there is none (lists the names).
        """
        if not isinstance(name, str) or name not in cls.members:
            known = cls.members
            raise UserError(f"{cls.family} must be one of {', '.join(known)}; got {name!r}.{meant(name, known)}")
        return cls.members[name]

    @classmethod
    def made(cls, name: Any, options: Mapping[str, Any]) -> Any:
        """The member of that name, with options.

        Raises:
            UserError: the name or an option is unknown (lists what exists), or a value is refused.
        """
        kind = cls.member(name)
        known = [option.name for option in options_of(kind)]
        for option in options:
            if option not in known:
                raise UserError(
                    f"{cls.family} {name} has no option {option!r}; it has {', '.join(known) or 'none'}."
                    f"{meant(option, known)}"
                )
        return kind(**options)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field, made where a factory makes it; dataclasses.MISSING where it has none."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def options_of(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are options."""
    return [field for field in dataclasses.fields(kind) if field.init and not field.metadata.get("derived")]


def names_of(kind: Any) -> list[str]:
    """The names of a dataclass's options, and of those that stand beside one of them, whichever member is chosen."""
    found = []
    for field in options_of(kind):
        if field.metadata.get("beside"):
            family = default_of(field)
            found += [family.family, *(name for member in family.members.values() for name in names_of(member))]
        else:
            found.append(field.name)
    return list(dict.fromkeys(found))


def tree_of(config: Any) -> dict[str, Any]:
    """What JSON keeps of a dataclass: its options, after the name of what is Named; those of a field marked BESIDE stand beside it.

    Raises:
        UserError: an object without a name, which could not be made again.
    """
    tree: dict[str, Any] = {}
    if isinstance(config, Named):
        if not config.name:
            raise UserError(f"{config!r} has no name by which a config could keep it.")
        tree[config.family] = config.name
    for field in options_of(config):
        value = getattr(config, field.name)
        tree |= tree_of(value) if field.metadata.get("beside") else {field.name: value}
    return tree
