"""`ddpm verify` notices every fault of the table, where it lies; without one, it notices nothing."""

from collections.abc import Iterator

import pytest
from mutations import MUTATIONS, OPTIONS, Mutation, verification

FOUND: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """What caught each mutation, shown with -s."""
    yield
    print("\n" + "\n".join(FOUND))


@pytest.mark.parametrize("network", OPTIONS)
def test_nothing_is_noticed_where_nothing_is_broken(network: str):
    """The control: all that any fault of this network is looked for in."""
    stages = {stage for mutation in MUTATIONS if mutation.network == network for stage in mutation.stages}
    report = verification(network).run(stages)
    assert report.ok, report.table()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
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
