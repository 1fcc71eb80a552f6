"""What all networks share: how they show themselves."""

from typing import Any

from flax import nnx

from ddpm_jax import display


class Network(nnx.Module):
    """A network that keeps the options it was built of."""

    config: Any

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in nnx.state(self, nnx.Param).flat_state().leaves)
        return display.line(self, f"{count:,} parameters", **display.changed(self.config))

    def __str__(self) -> str:
        return repr(self)
