"""What all networks share: how they show themselves, and whether they are given labels."""

from typing import Any

from flax import nnx

from ddpm_jax import display
from ddpm_jax.errors import UserError


class Network(nnx.Module):
    """A network that keeps the options it was built of."""

    config: Any

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in nnx.state(self, nnx.Param).flat_state().leaves)
        return display.line(self, f"{count:,} parameters", **display.changed(self.config))

    def __str__(self) -> str:
        return repr(self)

    def _check_labels(self, labels: Any) -> None:
        """See that there are labels exactly where there are classes.

        Raises:
            UserError: labels missing for a network with classes, or given to another.
        """
        config = self.config
        if (labels is None) != (config.num_classes is None):
            need = "needs" if labels is None else "takes no"
            raise UserError(f"{config.network} with num_classes = {config.num_classes} {need} labels.")
