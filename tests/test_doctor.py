"""`ddpm doctor` on a machine without an accelerator; and what it says of one that computes wrongly."""

import json

import numpy as np
import pytest

from ddpm_jax import benchmark, cli, doctor
from ddpm_jax.errors import UserError


def rows_of(ratio):
    """Of the benchmark, whose own tests are elsewhere."""
    common = {"workload": "digits", "examples": 64, "quartiles_ms": (9.0, 11.0), "calls": 10, "compile_s": 1.0}
    contenders = {"jax": {"share_of_peak": 0.25}, "torch": {"ratio": ratio}}
    rows = [
        benchmark.Row(what=what, contender=name, call_ms=10.0, **common, **options)
        for what in ("train", "sample")
        for name, options in contenders.items()
    ]
    return benchmark.Report({}, rows)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "NETWORKS", {"conv_net": {"image_size": 8, "dim": 5}, "mlp": {"dim": 8}})
    monkeypatch.setattr(doctor.benchmark, "benchmark", lambda *_, **__: rows_of(1.5))
    doctor._reference.cache_clear()
    yield
    doctor._reference.cache_clear()


def test_a_machine_that_is_well(quick, tmp_path, capsys):
    assert cli.main(["doctor", "--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "report.json")]) == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())
    assert "all is well" in text and "6,400 images/s of digits" in text and "1.50 times the PyTorch twin" in text
    assert found["ok"] and found["devices"][0]["platform"] == "cpu" and found["versions"]["jax"] in text
    assert [each["precision"] for each in found["exactness"]] == ["highest", "default", "bfloat16"] * 2
    assert found["folder"]["free_bytes"] > 0 and not (tmp_path / "runs").exists()
    # float32 rounds at 1e-7 and bfloat16 at 4e-3: as far from float64 as that, and no farther
    for each in found["exactness"]:
        low, high = (1e-3, 0.1) if each["precision"] == "bfloat16" else (1e-8, 1e-5)
        assert low < each["output"] < high, each
    assert found["memory"]["estimated_bytes"] > 4 * 4 * 100_000  # parameters, their average, two moments, in float32


def test_a_machine_that_computes_wrongly(quick, monkeypatch, tmp_path):
    right = doctor._computed

    def wrong(network, device, kept_in, dtype):
        output, gradient = right(network, device, kept_in, dtype)
        return (output, gradient + 0.01 * np.abs(gradient).max()) if kept_in == "float32" else (output, gradient)

    monkeypatch.setattr(doctor, "_computed", wrong)
    found = doctor.examine(tmp_path)
    bad = [(each.network, each.precision) for each in found.exactness if not each.ok]
    assert not found.ok and bad == [("conv_net", "highest"), ("mlp", "highest")]
    assert found.table().count("TOO FAR") == 2 and "SOMETHING IS WRONG" in found.table()


def test_devices_whose_peaks_are_known():
    assert doctor.chip_of("NVIDIA H100 80GB HBM3").name == "h100" and doctor.chip_of("TPU v5 lite").name == "v5e"
    assert doctor.chip_of("cpu") is None


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="seconds must be positive; got 0"):
        doctor.examine(tmp_path, seconds=0.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        doctor.examine(tmp_path / "file" / "runs")
