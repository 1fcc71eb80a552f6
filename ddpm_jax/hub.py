"""Files of the Hugging Face Hub, through its library's own cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from ddpm_jax.errors import UserError

NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""What an id looks like: owner/name."""


class NotFetched(Exception):
    """A repository, or a revision of it, that is neither in the cache nor to be had; says why in one line."""


def fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder that holds the files of a repository that fit the patterns, as far as it has any.

    Kept where huggingface_hub keeps it ($HF_HOME, $HF_HUB_CACHE); with $HF_HUB_OFFLINE nothing is asked of the network. revision: a
    branch, tag or commit; None: main.

    Raises:
        UserError: huggingface_hub is not installed.
        NotFetched: the repository is neither there nor to be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f'{name} is of the Hub, which needs huggingface_hub: pip install "ddpm-jax[hub]".') from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # which errors a missing network raises has changed with its HTTP library
        raise NotFetched(": ".join([type(error).__name__, *str(error).splitlines()[:1]])) from error
