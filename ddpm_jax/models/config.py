"""What the options of all networks share: their table by name, their checks, and the shape of an example."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from flax import nnx

from ddpm_jax import display
from ddpm_jax.errors import UserError, meant
from ddpm_jax.typed import build

NETWORKS: dict[str, type["ModelConfig"]] = {}
"""name -> the options of that network; without any, exactly what its author built. A subclass of ModelConfig enters itself."""


@dataclass(frozen=True)
class ModelConfig:
    """The options of a network: a frozen dataclass beside it, `class MyConfig(ModelConfig, network="my_network")`."""

    network: ClassVar[str]
    """The network's name."""

    def __init_subclass__(cls, network: str):
        cls.network = network
        cls.__repr__ = display.of_fields  # type: ignore[method-assign]  # set before the dataclass would make its own
        NETWORKS[network] = cls

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network of these options."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example that the network takes: (H, W, C) of an image."""
        options: Any = self
        return (options.image_size, options.image_size, options.channels)

    def _at_least_1(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}.")

    def _at_least_1_or_none(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, or None; got {getattr(self, name)}.")

    def _divides(self, name: str, divisor: int) -> None:
        if getattr(self, name) % divisor:
            raise UserError(f"{name} must be divisible by {divisor}; got {getattr(self, name)}.")

    def _even_dim(self) -> None:
        """Dim, the width of the sinusoids of t, is even and at least 4."""
        options: Any = self
        if options.dim % 2 or options.dim < 4:
            raise UserError(f"dim must be even and at least 4; got {options.dim}.")

    def _for_each_level(self, name: str) -> None:
        numbers = getattr(self, name)
        if not numbers or min(numbers) < 1:
            raise UserError(f"{name} must be positive integers, one for each level; got {numbers}.")

    def _droppable(self) -> None:
        """Dropout lies in [0, 1)."""
        options: Any = self
        if not 0 <= options.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1); got {options.dropout:g}.")


def configure(name: str, options: Mapping[str, Any]) -> Any:
    """The config of a network by name.

    Raises:
        UserError: an unknown name or option (lists what exists), or options that do not fit together.
    """
    kind = kind_of(name)
    known = [option.name for option in fields(kind)]
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(known)}.{meant(option, known)}")
    return build(kind, {key: _plain(value) for key, value in options.items()}, name)


def _plain(value: Any) -> Any:
    """A value as JSON has it: lists for tuples, Python's numbers for NumPy's."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def kind_of(name: str) -> type[ModelConfig]:
    """The class of the options of a network.

    Raises:
        UserError: an unknown name (lists what exists).
    """
    if not isinstance(name, str) or name not in NETWORKS:
        known = sorted(NETWORKS)
        raise UserError(f"the network must be one of {', '.join(known)}; got {name!r}.{meant(name, known)}")
    return NETWORKS[name]
