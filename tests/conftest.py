"""Nothing is optimised that runs for milliseconds, and one small run is trained for all who look at runs."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import pytest

from ddpm_jax import cpu_forms

TINY = """
    --model.dim 4 --model.norm-groups 2 --model.dim-mults 1 --model.dropout 0.1 --process.num-steps 20 --data.flip
    --train.steps 12 --train.batch-size 8 --train.lr 0.01 --train.warmup-steps 0 --train.lr-decay constant
    --train.log-every 2 --train.sample-every 8 --train.checkpoint-every 4 --sample.steps 4 --sample.num 10
"""


@contextmanager
def unoptimised(*, forms: bool = False) -> Iterator[None]:
    """Programs that run for milliseconds need not be optimised, neither here nor in commands, and take a fifth longer to compile
    with forms."""
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch, nullcontext() if forms else cpu_forms.off():
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("DDPM_CPU_FORMS", "on" if forms else "off")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Undone after each module, for other test directories' sake."""
    with unoptimised(forms=request.node.get_closest_marker("cpu_forms") is not None):
        yield


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options that make a preset train in a second."""
    return TINY.split()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps on the digits with checkpoints at 4, 8 and 12, made by the command; not to be changed."""
    from ddpm_jax.cli import main

    folder = tmp_path_factory.mktemp("runs") / "digits"
    with unoptimised():  # as are the programs that it is compared with
        assert main(["train", "digits", *TINY.split(), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def without_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody looks at a run's samples it draws none: compiling the walk takes as long as compiling the step."""
    monkeypatch.setattr("ddpm_jax.training.loop._Training.save_samples", lambda self, state, *, last: None)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Any:
    """A copy of the finished run, opened, which may be written to."""
    from ddpm_jax.training import open_run

    shutil.copytree(finished_run, tmp_path / "run")
    return open_run(tmp_path / "run")


@pytest.fixture
def killed_run(finished_run: Path, tmp_path: Path) -> Callable[[int], Path]:
    """killed_run(step): a copy of the finished run as a crash would leave it whose newest checkpoint is that of `step`."""

    def copy(step: int) -> Path:
        folder = tmp_path / f"killed_at_{step}"
        shutil.copytree(finished_run, folder)
        for checkpoint in (folder / "checkpoints").iterdir():
            if checkpoint.name.isdecimal() and int(checkpoint.name) > step:
                shutil.rmtree(checkpoint)
        for name in ("samples.png", "samples.npz", "denoising.gif", "loss.png"):
            (folder / name).unlink()
        return folder

    return copy
