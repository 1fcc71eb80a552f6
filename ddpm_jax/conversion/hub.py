"""Repositories of the Hugging Face Hub: the folder that its own cache keeps of one, fetched where it is not there yet."""

import re
from pathlib import Path

from ddpm_jax.errors import UserError

NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""What an id looks like: owner/name."""
FIRST = [
    "*.json",
    "README.md",
    "LICENSE*",
    "diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
]
THEN = ["diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.bin"]
"""Files that are fetched, and those that are where the first hold no weights."""


def snapshot(name: str, revision: str | None = None) -> tuple[Path, str]:
    """The folder of a repository's files, and the commit that they are of.

    Kept where huggingface_hub keeps it ($HF_HOME, $HF_HUB_CACHE); with $HF_HUB_OFFLINE nothing is asked of the network. revision:
    a branch, tag or commit; None: main.

    Raises:
        UserError: huggingface_hub is not installed, or the repository is neither there nor to be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f'{name} is no file or folder here, and the Hub needs huggingface_hub: pip install "ddpm-jax[hub]".'
        ) from error
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FIRST))
        if not any((folder / path).is_file() for path in FIRST[3:]):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=THEN))
    except Exception as error:  # which errors a missing network raises has changed with its HTTP library
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"{name} cannot be fetched from the Hub ({type(error).__name__}: {str(error).splitlines()[0]}). By hand, where there "
            f"is a network: hf download {name}{at} --local-dir FOLDER; then, here: ddpm import FOLDER --out RUN."
        ) from error
    return folder, folder.name


def licence(folder: Path) -> str | None:
    """What the model card (README.md) says of the licence; None: nothing."""
    card = folder / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = head and re.search(r"^license:\s*(\S.*?)\s*$", head[1], re.MULTILINE)
    return found[1] if found else None
