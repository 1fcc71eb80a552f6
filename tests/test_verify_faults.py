"""Every fault of the table is caught, located at its own line's layer, and, for most, its cause is named."""

import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("equinox")

from planted_faults import FAULTS, NETWORKS, pair

from ddpm_jax import verify

QUICK = 5
"""Faults of a network that the usual run looks for."""

FOUND: dict[str, tuple[bool, bool, bool]] = {}
"""fault -> whether it was caught, located, and explained."""


@pytest.fixture(scope="module", autouse=True)
def counts():
    """How many of each, shown with -s."""
    yield
    caught, located, explained = (sum(found) for found in zip(*FOUND.values(), strict=True)) if FOUND else (0, 0, 0)
    print(f"\n{len(FOUND)} faults: {caught} caught, {located} located, {explained} with the right cause")


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_right_is_called_right(network):
    report = verify.compare(*pair(network), training=network == "resnet", gradients=False)
    assert report.ok and not report.faults, report.table(every_row=True)
    assert report.coverage is not None and report.coverage.compared >= 4


def marked():
    """The first few of each network; the others take over half a minute together."""
    for index, fault in enumerate(FAULTS):
        before = sum(other.network == fault.network for other in FAULTS[:index])
        yield pytest.param(fault, id=fault.id, marks=pytest.mark.slow if before >= QUICK else ())


@pytest.mark.parametrize("fault", marked())
def test_the_fault_is_named(fault):
    report = verify.compare(*pair(fault.network, **fault.options), gradients=False, **fault.given)
    first = report.faults[0] if report.faults else None
    located = first is not None and (first.name, first.kind) == (fault.name, fault.kind)
    said = "" if first is None else f"{first.place} {first.cause}"
    explained = bool(located and re.search(fault.cause or ".^", said))
    FOUND[fault.id] = not report.ok, located, explained
    assert not report.ok
    assert located, report.table(every_row=True)
    assert len(report.faults) == 1, report.table()
    assert fault.cause is None or explained, first.sentence()


def test_the_table_is_broad():
    assert len(FAULTS) >= 60 and len({fault.network for fault in FAULTS}) == len(NETWORKS) == 8
    assert sum(fault.cause is not None for fault in FAULTS) >= 45
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
