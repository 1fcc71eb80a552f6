"""`ddpm convert`, `import` and `average`: weights from one form to another, of other libraries, and of several checkpoints."""

from ddpm_jax.conversion.averaging import average
from ddpm_jax.conversion.forms import convert, fitted
from ddpm_jax.conversion.importing import import_weights, recognised

__all__ = ["average", "convert", "fitted", "import_weights", "recognised"]
