"""float64 in JAX, one thread in PyTorch, and a last word on the errors that were met."""

from collections.abc import Callable, Iterator

import jax
import pytest
import torch
from checker import unchecked
from tolerances import TOLERANCES, WORST
from twins import make_pair


@pytest.fixture(autouse=True, scope="module")
def both_precisions() -> Iterator[None]:
    """float64 is possible here, so float32 has to be asked for; undone afterwards, for other test directories' sake."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def without_the_checker() -> Iterator[None]:
    """What is looked at here are numbers; annotations are held to what is passed in tests/, and cost a tenth of the time."""
    with unchecked():
        yield


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other at every small operation cost more than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["float64", "float32"], scope="module")
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """The precision that both sides compute in.

    Programs in float32 are compiled without LLVM's optimisations, which takes half the time or less; those in float64 would then
    run their convolutions for minutes.
    """
    jax.config.update("jax_disable_most_optimizations", request.param == "float32")
    yield request.param
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def pair() -> Callable:
    """pair(name, dtype, **options): the network and its twin with the same random weights."""
    return make_pair


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not WORST:
        return
    terminalreporter.section("largest relative errors, ddpm_jax against ddpm_torch_ref")
    for (quantity, dtype, device), allowed in TOLERANCES.items():
        if device == "cpu" and (quantity, dtype) in WORST:
            error, name = WORST[quantity, dtype]
            terminalreporter.write_line(f"{quantity:11} {dtype}  {error:.1e}  (allowed {allowed:g})  {name}")
