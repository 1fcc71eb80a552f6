"""`ddpm convert` and `ddpm import`: weights from one form to another, and those of other libraries as run folders."""

from ddpm_jax.conversion.forms import convert, fitted
from ddpm_jax.conversion.importing import import_weights, recognised

__all__ = ["convert", "fitted", "import_weights", "recognised"]
