"""Checkpoints of the training state: written in the background, whole or not there, checked when loaded, the newest n kept."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from ddpm_jax.errors import UserError
from ddpm_jax.training.state import TrainState

FORMAT = 2
"""Version of a checkpoint's layout: 1 is what Orbax writes; 2 has a manifest beside it."""
MANIFEST = "manifest.json"
"""In every checkpoint: its format, and the SHA-256 of each of its other files."""
_METADATA = "_CHECKPOINT_METADATA"


class Checkpoints:
    """The checkpoints of one run, by step. Use as a context manager: leaving it waits for what is being written.

    Args:
        folder: where they are, a folder for each, named by its step.
        keep: how many of the newest are kept; None: this is a reader, which changes nothing.
        keep_every: those whose step is a multiple of it are kept for good; None: no such ones.

    Raises:
        UserError: keep is given, and the folder cannot be made or cleared of what a killed run had half written.
    """

    def __init__(self, folder: Path, keep: int | None = None, keep_every: int | None = None):
        self.folder = folder
        self._keep = keep
        self._keep_every = keep_every
        self._saved: int | None = None
        self._damaged: set[int] = set()
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if keep is not None and jax.process_index() == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for path in folder.iterdir():
                    if re.match(r"\d+\.", path.name):  # neither here nor there: see _finish and _discard
                        shutil.rmtree(path)
            except OSError as error:
                raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # what is being raised already is told first
        finally:
            self._writer.shutdown()

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if re.fullmatch(r"\d+", path.name))

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step, after what is being written; None: there is none."""
        self.wait()
        return max(self.steps, default=None)

    def save(self, state: TrainState) -> None:
        """Write the state in the background; waits only for the write before. A step saved or restored just now stays as it is.

        Raises:
            UserError: this write or the one before failed (disk full, read-only); all earlier checkpoints stand.
        """
        step = int(state.step)
        if self._saved == step:
            return
        self.wait()
        partial = self.folder / f"{step}.partial"
        try:
            with _context():
                written = ocp.save_async(partial.absolute(), _parts(state), custom_metadata={"format": FORMAT})
        except (OSError, ValueError) as error:
            raise self._failure(step, error) from error
        self._saved = step
        self._pending = self._writer.submit(self._finish, step, written)

    def wait(self) -> None:
        """Return once what is being written is there.

        Raises:
            UserError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The newest state that is sound, or that of `step`; a newer one that is damaged is warned about, by name.

        like: a state of the same shapes, arrays or jax.ShapeDtypeStruct; leaves that have a sharding are restored onto it.

        Raises:
            UserError: there is no checkpoint, all of them are damaged, or it does not hold such a state.
        """
        self.wait()
        steps = self.steps[::-1] if step is None else [step]
        if not steps:
            raise UserError(f"{self.folder} holds no checkpoint; train the run first.")
        problems: list[str] = []
        for candidate in steps:
            problem, checked = damage(self.folder / str(candidate))
            if problem is None:
                try:
                    placed = jax.tree.map(_placed, _parts(like))
                    state = dataclasses.replace(like, **ocp.load((self.folder / str(candidate)).absolute(), placed))
                except (ValueError, KeyError, OSError) as error:
                    problem = unfit(self.folder / str(candidate), like) or str(error)
                    if checked:  # what was written is there, and is another state
                        raise UserError(self._cannot_load(candidate, problem)) from error
                else:
                    for line in problems:
                        warnings.warn(f"{line} Going back to step {candidate}.", stacklevel=2)
                    self._saved = candidate
                    return state
            self._damaged.add(candidate)
            problems.append(self._cannot_load(candidate, problem))
        raise UserError(" ".join(problems))

    def _cannot_load(self, step: int, problem: str) -> str:
        return f"the checkpoint of step {step} in {self.folder} cannot be loaded: {problem.rstrip('.')}."

    def _finish(self, step: int, written: Any) -> None:
        """In the background: once Orbax has written, add the manifest, make the checkpoint visible, drop what is too old."""
        partial = self.folder / f"{step}.partial"
        try:
            written.result()  # on all processes alike
            if jax.process_index() != 0:
                return
            tree = {"format": FORMAT, "sha256": _digests(partial)}
            (partial / MANIFEST).write_text(json.dumps(tree, indent=1) + "\n")
            _to_disk(partial)  # before older ones go: a power cut must not take both
            if (self.folder / str(step)).exists():  # a damaged one
                self._discard(step)
            os.rename(partial, self.folder / str(step))
            self._damaged.discard(step)
            for old in self._too_old():
                self._discard(old)
        except (OSError, ValueError) as error:
            raise self._failure(step, error) from error

    def _too_old(self) -> list[int]:
        if self._keep is None:
            return []
        sound = [step for step in self.steps if step not in self._damaged]
        return [step for step in sound[: -self._keep] if not (self._keep_every and step % self._keep_every == 0)]

    def _discard(self, step: int) -> None:
        """A checkpoint is gone at once, however long its files take: nobody sees half of it."""
        rest = self.folder / f"{step}.deleted"
        os.rename(self.folder / str(step), rest)
        shutil.rmtree(rest)

    def _failure(self, step: int, error: Exception) -> UserError:
        for path in self.folder.glob(f"{step}.*"):  # makes room, where that is what was missing
            _delete(path)
        self._saved = None
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or error
        kept = ", ".join(map(str, self.steps))
        rest = f" Those of the steps {kept} are untouched; make room and go on with --resume." if kept else ""
        return UserError(f"the checkpoint of step {step} in {self.folder} cannot be written: {reason}.{rest}")


def _context() -> ocp.Context:
    context = ocp.Context()
    # Orbax would wait ten minutes for a folder that a background thread could not make
    context.asynchronous.create_directories_asynchronously = False
    return context


def damage(checkpoint: Path) -> tuple[str | None, bool]:
    """What is wrong with the files of a checkpoint, None where nothing is; and whether they could be checked: not in format 1."""
    manifest = checkpoint / MANIFEST
    try:
        if not manifest.is_file():
            custom = json.loads((checkpoint / _METADATA).read_bytes()).get("custom_metadata") or {}
            return (f"its {MANIFEST} is missing", True) if "format" in custom else (None, False)
        tree = json.loads(manifest.read_bytes())
        version, expected = tree["format"], dict(tree["sha256"])
        if version != FORMAT:
            return f"it has format {version!r}; this version of ddpm-jax reads formats 1 and {FORMAT}", True
        found = _digests(checkpoint)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"it is damaged ({error})", True
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    return (f"it is damaged: {', '.join(wrong)}" if wrong else None), True


def unfit(checkpoint: Path, like: TrainState) -> str | None:
    """In which tensors a checkpoint is no state such as `like`, the first by name; None: in none, or that cannot be told."""
    try:
        found = _shapes(ocp.metadata(checkpoint.absolute()).metadata)
    except (ValueError, KeyError, OSError):
        return None
    wanted = _shapes(_parts(like))
    differing = [name for name in sorted(found | wanted) if found.get(name) != wanted.get(name)]
    if not differing:
        return None
    first = min(
        differing, key=lambda name: not name.startswith("params.")
    )  # rather than the average and Adam's moments of it
    there, here = (str(shapes.get(first, "missing")) for shapes in (found, wanted))
    more = f", and {len(differing) - 1} more tensors differ" if len(differing) > 1 else ""
    return f"it does not fit the run's config.json: {first} is {there} in it, and by the config {here}{more}"


def _parts(state: TrainState) -> dict[str, Any]:
    """What is written of a state; averages only where there are any, so that checkpoints from before there were fit as well."""
    names = [part.name for part in dataclasses.fields(state) if not part.metadata.get("static")]
    return {name: getattr(state, name) for name in names if name != "averages" or state.averages is not None}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, by path."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path != checkpoint / MANIFEST:
            with path.open("rb") as file:
                digests[path.relative_to(checkpoint).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _to_disk(folder: Path) -> None:
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    for path in (*folder.rglob("*"), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _delete(folder: Path) -> None:
    """A folder is gone, if that can be: threads of Orbax that have not failed yet may go on writing into it for a while."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
