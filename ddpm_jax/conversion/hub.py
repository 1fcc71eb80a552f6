"""Repositories of the Hugging Face Hub: the folder that its own cache keeps of one, fetched where it is not there yet."""

import contextlib
import re
from pathlib import Path

from ddpm_jax.conversion.folders import AVERAGED, TRAINED
from ddpm_jax.conversion.weight_files import STEM
from ddpm_jax.errors import UserError
from ddpm_jax.hub import NotFetched, fetch

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

    revision: a branch, tag or commit; None: main. variant: of the weights' files, as fp16; None: plain ones, or else whichever
    there are.

    Raises:
        UserError: huggingface_hub is not installed, or the repository is neither there nor to be had.
    """
    failure: NotFetched | None = None
    for weights in _patterns(variant):
        try:
            folder = fetch(name, revision, [*CONFIGS, *weights])
        except NotFetched as error:
            failure = failure or error
            continue
        if any(next(folder.glob(pattern), None) for pattern in weights):
            with contextlib.suppress(NotFetched):  # the card, which names the licence, is not needed
                fetch(name, revision, ["README.md"])
            return folder, folder.name
    if failure is None:
        of = f" of the variant {variant}" if variant else ""
        raise UserError(
            f"{name} holds no weights of diffusers{of}: no {STEM}.safetensors or .bin, nor an index of shards."
        )
    at = f" --revision {revision}" if revision else ""
    raise UserError(
        f"{name} cannot be fetched from the Hub ({failure}). By hand, where there is a network: "
        f"hf download {name}{at} --local-dir FOLDER; then, here: ddpm import FOLDER --out RUN."
    ) from failure


def licence(folder: Path) -> str | None:
    """What the model card (README.md) says of the licence; None: nothing."""
    card = folder / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = head and re.search(r"^license:\s*(\S.*?)\s*$", head[1], re.MULTILINE)
    return found[1] if found else None
