"""From a spec on the command line (`digits`, `idx:PATH`, `folder:PATH`, ...) to a source."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ddpm_jax.data import digits, folder, hf, hf_stream, idx, npz, points, tfds, webdataset  # noqa: F401 - each enters its FORMS
from ddpm_jax.data.source import FORMS, Form, Opening, Source
from ddpm_jax.data.subset import ClassSubset
from ddpm_jax.errors import UserError, meant

OnBadImage = Literal["stop", "skip"]


def open_source(
    spec: Any, *, on_bad_image: str = "stop", classes: Sequence[str] = (), label: str | None = None
) -> Source:
    """Open a data source by its spec, which has one of the `FORMS`.

    Args:
        spec: which data; a bare path, as text or a Path, is taken for what lies there.
        on_bad_image: of files, archives and tables: "stop" at an unreadable image, or "skip" to the next one.
        classes: names of the only classes to take; none: all.
        label: which of several columns of labels to take; None: the only one there is, or the one that the form says.

    Raises:
        UserError: an unknown spec, option or class, or data that is missing or damaged.
    """
    if not isinstance(spec, str | os.PathLike):
        raise UserError(f"the data source must be text or a path; got {spec!r}. The forms are\n{forms()}")
    if on_bad_image not in get_args(OnBadImage):
        raise UserError(f"on_bad_image must be 'stop' or 'skip'; on_bad_image = {on_bad_image!r}.")
    form, rest = _form_and_rest(os.fspath(spec))
    if label is not None and not form.columns:
        several = ", ".join(kind for kind, known in sorted(FORMS.items()) if known.columns)
        raise UserError(
            f"data.label chooses one of several columns of labels, as {several} may have; {spec} has none: {label!r}."
        )
    source = form.open(rest, Opening(on_bad_image, label))
    wanted = (classes,) if isinstance(classes, str) else tuple(map(str, classes))
    return ClassSubset(source, wanted) if wanted else source


def check_there(spec: str) -> None:
    """See that a spec has one of the `FORMS`, and that the path in it exists; nothing is read.

    Raises:
        UserError: it has none, or nothing is there.
    """
    form, rest = _form_and_rest(spec)
    path = None if form.path is None else form.path(rest)
    if path is not None and not path.exists():
        raise UserError(f"{path}: no such {'folder' if form is FORMS['folder'] else 'file'}; data.source = {spec!r}.")


def forms() -> str:
    """Every form of a spec, a line each."""
    lines = [f"  {form.usage:<32}{form.about}" for _, form in sorted(FORMS.items())]
    return "\n".join([*lines, f"  {'PATH':<32}a folder, a .zip or an .npz file"])


def _form_and_rest(spec: str) -> tuple[Form, str]:
    """The form that a spec has, a bare path being taken for what lies there, and what follows its colon."""
    kind, _, rest = spec.partition(":")
    if kind in FORMS and (rest or FORMS[kind].alone):
        form = FORMS[kind]
        return form, rest if form.path is None else os.path.expanduser(rest)
    if kind == "python":
        raise UserError(
            f"the data {rest!r} was given to training.train as an object in Python, which cannot be opened by name."
        )
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return FORMS["idx" if idx.holds_idx(path) else "folder"], str(path)
    if path.suffix.lower() in (".npz", ".zip"):
        return FORMS[path.suffix.lower()[1:]], str(path)
    usages = ", ".join([*(form.usage for _, form in sorted(FORMS.items())), "PATH"])
    raise UserError(
        f"the data source {spec!r} is not known, and no folder of that name exists; it must be one of {usages}."
        f"{meant(kind, FORMS)}"
    )
