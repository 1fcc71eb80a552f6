"""What docs/play.md draws with: the pretrained digits as ONNX, and the tables of their process as JSON, as play/ on the site.

A hook of MkDocs. Both files lie in build/play/ and are made anew when something that they are made of has changed.
"""

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "play"
RUN = "pretrained:digits"
STEPS = range(5, 101)
"""Numbers of steps that the page offers."""
SAMPLERS = ("ddim", "dpmpp")
MADE_OF = (
    "ddpm_jax/pretrained/digits/*.*",
    "ddpm_jax/export/*.py",
    "ddpm_jax/samplers/*.py",
    "ddpm_jax/processes.py",
    "ddpm_jax/schedules.py",
    "ddpm_torch_ref/models/*.py",
    "ddpm_torch_ref/processes.py",
    "scripts/play_files.py",
)
log = logging.getLogger("mkdocs.hooks.play_files")


def digest() -> str:
    """A digest of all that the files are made of."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in MADE_OF for path in ROOT.glob(pattern)):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def is_made(folder: Path, made_of: str) -> bool:
    """Whether the folder holds what is made of that."""
    try:
        told = json.loads((folder / "digits.json").read_text())["made_of"]
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return told == made_of and (folder / "digits.onnx").is_file()


def make(folder: Path, made_of: str) -> None:
    """Write digits.onnx, by `ddpm convert`, and then digits.json: what that file says of itself, and the samplers' grids.

    Raises:
        PluginError: what `ddpm convert` says where it fails, as where PyTorch is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "digits.onnx"
    command = [sys.executable, "-m", "ddpm_jax", "convert", RUN, str(model)]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise PluginError(f"the page play.md needs {model.name}: {done.stdout.strip()}")

    import onnx

    from ddpm_jax import samplers
    from ddpm_jax.training import open_run

    about = {entry.key: json.loads(entry.value) for entry in onnx.load(model).metadata_props}
    process = open_run(RUN).process
    grids: dict[str, dict[int, list[int]]] = {}
    for name in SAMPLERS:
        rows = {steps: samplers.SAMPLERS[name]().grid(process, steps) for steps in STEPS}
        grids[name] = {steps: [*grid[:, 0].tolist(), int(grid[-1, 1])] for steps, grid in rows.items()}
    (folder / "digits.json").write_text(json.dumps(about | {"grids": grids, "made_of": made_of}))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add them to what is copied to the site, made anew if need be."""
    made_of = digest()
    if not is_made(FOLDER, made_of):
        log.info("build/play/digits.onnx is made, which takes half a minute")
        make(FOLDER, made_of)
    for name in ("digits.onnx", "digits.json"):
        files.append(File.generated(config, f"play/{name}", abs_src_path=str(FOLDER / name)))
    return files
