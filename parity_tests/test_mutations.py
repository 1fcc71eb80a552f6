"""`ddpm verify` notices every fault of the table, where it lies; without one, it notices nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
from mutations import MUTATIONS, OPTIONS, Mutation, verification

FOUND: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """What caught each mutation, shown with -s."""
    yield
    print("\n" + "\n".join(FOUND))


QUICK = 3
"""Faults of a network that are planted always, and one of `unet`; the others, and those of networks that take longest to compile,
are slow."""
LARGE = ("convnext_unet", "tiny_unet", "dit", "unet, scale_shift", "unet, classes")


def faults() -> Iterator[Any]:
    for index, mutation in enumerate(MUTATIONS):
        before = sum(other.network == mutation.network for other in MUTATIONS[:index])
        slow = before >= (1 if mutation.network == "unet" else QUICK) or mutation.network in LARGE
        yield pytest.param(mutation, id=mutation.name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in OPTIONS]
)
def test_nothing_is_noticed_where_nothing_is_broken(network: str):
    """The control: all that any fault of this network is looked for in."""
    stages = {stage for mutation in MUTATIONS if mutation.network == network for stage in mutation.stages}
    report = verification(network).run(stages)
    assert report.ok, report.table()


@pytest.mark.parametrize("mutation", [*faults()])
def test_the_fault_is_noticed_where_it_lies(mutation: Mutation, monkeypatch: pytest.MonkeyPatch):
    mutation.patch(monkeypatch)
    broken = verification(mutation.network)
    mutation.edit(broken)
    report = broken.run(mutation.stages)
    first = report.first_divergence
    assert first is not None, report.table()
    FOUND.append(f"{mutation.name:<45} {mutation.network:<18} {first.stage}: {first.name}  {first.error:.1e}")
    assert first.stage == mutation.stage, report.table(every_row=True)
    assert mutation.where in (None, first.name), report.table(every_row=True)


def test_the_names_are_unique():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20
