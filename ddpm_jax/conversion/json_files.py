"""JSON files of other libraries that hold options."""

import json
from pathlib import Path
from typing import Any

from ddpm_jax.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The options that a file holds.

    Raises:
        UserError: it is no JSON, or no object.
    """
    try:
        tree = json.loads(path.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} cannot be read: it holds no options.")
    return tree
