"""Which folder the name of a run means: a path, pretrained:NAME of this package, or hub:OWNER/NAME of the Hugging Face Hub."""

import os
from dataclasses import dataclass
from pathlib import Path

from ddpm_jax import hub
from ddpm_jax.errors import UserError, meant

PRETRAINED = Path(__file__).parent / "pretrained"
"""Runs that travel with the package."""
CONFIG = "config.json"
"""What says that a folder is a run."""
WEIGHTS = "weights.npz"
"""In place of checkpoints in a run that travels: averaged weights, in 16 bits."""


@dataclass(frozen=True)
class Place:
    """Where a run lies."""

    folder: Path
    """Its folder."""
    apart: Path | None = None
    """Where what is made of it goes, its folder not being the user's; None: into its folder."""

    @property
    def results(self) -> Path:
        """Where what is made of it goes."""
        return self.apart or self.folder


def place_of(name: str | os.PathLike[str]) -> Place:
    """The folder that a path, pretrained:NAME or hub:OWNER/NAME means; the last is fetched, unless the Hub's cache has it.

    hub:OWNER/NAME@REVISION is that of a branch, tag or commit. Of a path nothing is asked.

    Raises:
        UserError: there is no pretrained run of that name (lists them), or the repository cannot be had or holds no run.
    """
    kind, colon, rest = str(name).partition(":")
    if not colon or kind not in ("pretrained", "hub"):
        return Place(Path(name))
    if kind == "pretrained":
        there = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))
        if rest not in there:
            raise UserError(f"pretrained: must be one of {', '.join(there)}; got {rest!r}.{meant(rest, there)}")
        return Place(PRETRAINED / rest, Path(rest))
    repository, _, revision = rest.partition("@")
    if not hub.NAME.fullmatch(repository):
        raise UserError(f"hub: needs the id of a repository, as in hub:owner/name or hub:owner/name@v1; got {rest!r}.")
    try:
        folder = hub.fetch(repository, revision or None, [CONFIG, WEIGHTS])
    except hub.NotFetched as error:
        raise UserError(f"{name} cannot be fetched from the Hub ({error}).") from error
    missing = [part for part in (CONFIG, WEIGHTS) if not (folder / part).is_file()]
    if missing:
        raise UserError(
            f"{name} holds no {' and no '.join(missing)}, so it is no run that ddpm convert RUN FOLDER --to packed made. "
            f"For weights of other libraries: ddpm import {repository} --out RUN."
        )
    return Place(folder, Path(repository.partition("/")[2]))
