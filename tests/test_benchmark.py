"""ddpm_jax.benchmark: what is measured of whom, in turn, and how it is told."""

import dataclasses
import json
import os
import sys
import time

import numpy as np
import pytest

from ddpm_jax import benchmark
from ddpm_jax.benchmark import side_by_side, timing
from ddpm_jax.cli import main
from ddpm_jax.errors import UserError
from ddpm_jax.presets import SYSTEMS


@pytest.fixture(autouse=True, scope="module")
def idle():
    """Whoever runs these tests may do something else besides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
        yield


@pytest.fixture(scope="module")
def report():
    """All three pieces of work, of a network for images and of one for points."""
    images = benchmark.workload("conv_net", batch_size=2, sample_steps=3, options={"image_size": 8, "dim": 4})
    points = benchmark.workload("mlp", batch_size=4, sample_steps=3, sample_size=8)
    return benchmark.benchmark([images, dataclasses.replace(points, steps_per_call=5)], seconds=0.01)


def rows(report, **wanted):
    return [row for row in report.rows if all(getattr(row, name) == value for name, value in wanted.items())]


@pytest.mark.slow
def test_every_contender_does_every_piece_of_work(report):
    assert [(row.workload, row.what, row.contender) for row in report.rows] == [
        (name, what, side) for name in ("conv_net", "mlp") for what in benchmark.WHAT for side in ("jax", "torch")
    ]
    assert not report.notes
    for row in report.rows:
        low, high = row.quartiles_ms
        assert 0 < low <= row.call_ms <= high
        assert (row.ratio is None) == (row.contender == "jax")
    assert [row.examples for row in rows(report, contender="jax")] == [2, 2, 2, 4, 20, 8]


@pytest.mark.slow
def test_operations_are_counted(report):
    """Of the mlp by hand: 2 FLOP for each weight, twice as many backward but for the first layer's input."""
    weights = np.array([3 * 256, 256 * 256, 256 * 256, 256 * 2])
    forward, train = (rows(report, workload="mlp", what=what)[0].gflop_per_example for what in ("forward", "train"))
    assert forward == pytest.approx(2e-9 * weights.sum(), rel=0.05)
    by_hand = 2e-9 * (3 * weights.sum() - weights[0])
    # Adam and the average work on every weight once a batch, whatever its size
    assert by_hand < train < by_hand + 50e-9 * weights.sum() / 4
    assert rows(report, workload="conv_net", what="forward")[0].share_of_peak > 0
    (walk,) = {row.gflop_per_example for row in rows(report, workload="mlp", what="sample")}
    assert walk == pytest.approx(3 * forward, rel=0.05)  # of three steps; the sampler's own are few beside


@pytest.mark.slow
def test_memory_and_the_cache(report):
    for row in report.rows:
        assert row.memory_mib > 0
    for row in rows(report, contender="jax"):
        assert (row.from_cache_s is None) == (row.what == "sample")


@pytest.mark.slow
def test_the_files(report, tmp_path):
    paths = benchmark.write(report, tmp_path)
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.png"]
    tree = json.loads(paths[0].read_text())
    assert tree["environment"]["precision"] == "float32" and len(tree["rows"]) == len(report.rows)
    assert "torch" in report.table() and "examples/s" in report.table()


def test_contenders_take_turns():
    order = []
    calls = {name: timing.Call(lambda name=name: order.append(name), 1) for name in "ab"}
    timings = timing.alternate(calls, seconds=1e-9, turn=0.0, least=3)
    assert order == ["a", "b"] * 5
    assert len(timings["a"].later) == 3


def test_a_turn_goes_on_and_leaves_its_first_call_out():
    naps = iter([0.2, 0.01, 0.01, 0.01, 0.1, 9.0])
    call = timing.Call(lambda: time.sleep(next(naps)), 1)
    assert 0.01 <= call.seconds(turn=0.25) < 0.1
    assert next(naps) == 9.0
    assert timing.Call(lambda: time.sleep(0.02), 1).seconds() >= 0.02


def test_ratios_are_of_pairs():
    ours, theirs = timing.Timing(9.0, (1.0, 2.0, 4.0)), timing.Timing(9.0, (2.0, 2.0, 2.0))
    assert timing.ratios(ours, theirs) == [2.0, 1.0, 0.5]
    assert ours.median == 2.0


def test_presets_and_their_batches():
    work = benchmark.workload("digits-flow", batch_size=3)
    assert work.config.process.name == "flow" and work.batches()["x_0"].shape[1:] == (3, 8, 8, 1)
    assert benchmark.workload("mlp").batch_size == 25
    assert benchmark.workload("convnext_unet").batches()["label"].max() < 10


def test_heavy_networks_are_measured_by_name_alone(monkeypatch, capsys):
    """As the help says, which names them."""
    asked = []
    monkeypatch.setattr(benchmark, "benchmark", lambda works, **_: asked.extend(works) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["benchmark"])
    assert [work.name for work in asked] == list(benchmark.LIGHT)
    assert main(["benchmark", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in SYSTEMS if name not in benchmark.LIGHT) and len(benchmark.LIGHT) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "a network or a preset; got 'nonsense'"),
        (["mlp", "--precision", "tf32"], "tf32 belongs to NVIDIA GPUs"),
        (["mlp", "--batch-size", "0"], "batch_size must be at least 1; got 0"),
        (["mlp", "--sample-size", "0"], "sample_size must be at least 1; got 0"),
        (["mlp", "--sample-steps", "0"], "sample.steps must be at least 1; got 0"),
        (["mlp", "--seconds", "0"], "seconds must be positive; got 0"),
        (["mlp", "--seconds", "nan"], "seconds must be positive; got nan"),
        pytest.param(["spiral-flow", "--sampler", "adaptive", "--what", "sample"], None, marks=pytest.mark.slow),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path):
    status = main(["benchmark", "--seconds", "0.01", "--out", str(tmp_path), *arguments])
    output = capsys.readouterr()
    if message is None:  # diffrax walks it, and the twin has no such solver
        assert status == 0 and "not measured" in output.out
    else:
        assert status == 2 and message in output.err


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    report = benchmark.benchmark([benchmark.workload("mlp", batch_size=4)], what=["forward"], seconds=0.01)
    assert [row.contender for row in report.rows] == ["jax"]
    assert "ddpm-jax[torch]" in report.notes[0]


@pytest.mark.parametrize(("load", "told"), [(0.3, False), (1.7, True)])
def test_a_machine_that_is_busy_is_told(load, told, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    work = benchmark.workload("mlp", batch_size=4)
    report = benchmark.benchmark([work], what=["forward"], against=(), seconds=0.01)
    assert [note.startswith("other work kept 1.7 of ") for note in report.notes] == [True] * told


@pytest.mark.slow
def test_diffusers_as_a_third_contender():
    """Of unet alone; what cannot be measured is told."""
    options = {"image_size": 8, "dim": 8, "dim_mults": (1,), "num_blocks": 1, "norm_groups": 4}
    works = [benchmark.workload("unet", batch_size=2, options=options), benchmark.workload("mlp", batch_size=2)]
    report = benchmark.benchmark(works, what=["forward"], against=["torch", "diffusers"], seconds=0.01)
    assert [row.contender for row in report.rows] == ["jax", "torch", "diffusers", "jax", "torch"]
    assert report.notes == ["mlp forward diffusers: not measured. diffusers has no mlp."]


def test_out_of_memory(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(side_by_side, "alternate", fail)
    with pytest.raises(UserError, match=r"mlp forward: 64 examples do not fit into memory. Try --batch-size 32"):
        benchmark.benchmark([benchmark.workload("mlp", batch_size=64)], what=["forward"], against=())
