"""Repositories of the Hugging Face Hub: the folder that its own cache keeps of one, fetched where it is not there yet."""

import contextlib
import re
from pathlib import Path
from typing import Any

from ddpm_jax.conversion.folders import AVERAGED, TRAINED
from ddpm_jax.conversion.weight_files import STEM
from ddpm_jax.errors import UserError

NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""What an id looks like: owner/name."""
_FOLDERS = ("", f"{TRAINED}/", f"{AVERAGED}/")
CONFIGS = [
    "model_index.json",
    "scheduler_config.json",
    "scheduler/scheduler_config.json",
    *(f"{folder}config.json" for folder in _FOLDERS),
]


def _patterns(variant: str | None) -> list[list[str]]:
    """Patterns of files of which one is needed: each kind where there is none of those before."""
    names = [f"{STEM}*{variant}*"] if variant else []
    for suffix in () if variant else ("safetensors", "bin"):
        names += [f"{STEM}.{suffix}", f"{STEM}.{suffix}.index.json {STEM}-?????-of-?????.{suffix}"]
    if not variant:
        names += [f"{STEM}*.safetensors*", f"{STEM}*.bin*"]  # variants
    return [[folder + name for folder in _FOLDERS for name in kind.split()] for kind in names]


def snapshot(name: str, revision: str | None = None, variant: str | None = None) -> tuple[Path, str]:
    """The folder of a repository's files, and the commit that they are of.

    Kept where huggingface_hub keeps it ($HF_HOME, $HF_HUB_CACHE); with $HF_HUB_OFFLINE nothing is asked of the network. revision:
    a branch, tag or commit; None: main. variant: of the weights' files, as fp16; None: plain ones, or else whichever there are.

    Raises:
        UserError: huggingface_hub is not installed, or the repository is neither there nor to be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f'{name} is no file or folder here, and the Hub needs huggingface_hub: pip install "ddpm-jax[hub]".'
        ) from error

    def fetch(*files: str) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))

    failure: Any = None
    for weights in _patterns(variant):
        try:
            folder = fetch(*CONFIGS, *weights)
        except Exception as error:  # which errors a missing network raises has changed with its HTTP library
            failure = failure or error
            continue
        if any(next(folder.glob(pattern), None) for pattern in weights):
            with contextlib.suppress(Exception):  # the card, which names the licence, is not needed
                fetch("README.md")
            return folder, folder.name
    if failure is None:
        of = f" of the variant {variant}" if variant else ""
        raise UserError(
            f"{name} holds no weights of diffusers{of}: no {STEM}.safetensors or .bin, nor an index of shards."
        )
    at = f" --revision {revision}" if revision else ""
    reason = ": ".join([type(failure).__name__, *str(failure).splitlines()[:1]])
    raise UserError(
        f"{name} cannot be fetched from the Hub ({reason}). By hand, where there is a network: "
        f"hf download {name}{at} --local-dir FOLDER; then, here: ddpm import FOLDER --out RUN."
    ) from failure


def licence(folder: Path) -> str | None:
    """What the model card (README.md) says of the licence; None: nothing."""
    card = folder / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = head and re.search(r"^license:\s*(\S.*?)\s*$", head[1], re.MULTILINE)
    return found[1] if found else None
