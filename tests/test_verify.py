"""Verification as a user meets it: two modules of one's own, mistakes, reports, and the command."""

import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ddpm_jax import cli, verify
from ddpm_jax.errors import UserError
from ddpm_jax.verify import recording, stages
from ddpm_jax.verify.jax_side import program_of
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.pages import to_html, to_json
from ddpm_jax.verify.patching import patched
from ddpm_jax.verify.program import placed_inputs, run
from ddpm_jax.verify.report import Report, Row
from ddpm_jax.verify.stages import Verification
from ddpm_jax.verify.torch_side import recorded

torch = pytest.importorskip("torch")
X = np.random.default_rng(0).standard_normal((2, 3, 6, 6))


# A user's own pair ----------------------------------------------------------------------------------------------


class Block(nnx.Module):
    def __init__(self, dim, rngs):
        self.norm = nnx.GroupNorm(dim, 2, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.conv = nnx.Conv(dim, dim, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x):
        return x + self.conv(nnx.relu(self.norm(x)))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv_in = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)
        self.blocks = nnx.List([Block(4, rngs), Block(4, rngs)])

    def __call__(self, x):
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x)
        return x


class TorchBlock(torch.nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.norm = torch.nn.GroupNorm(2, dim, eps=eps)
        self.conv = torch.nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x):
        return x + self.conv(torch.relu(self.norm(x)))


class TorchNet(torch.nn.Module):
    def __init__(self, eps=1e-5):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = torch.nn.ModuleList([TorchBlock(4), TorchBlock(4, eps)])

    def forward(self, x):
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x)
        return x


class OtherNames(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.body = torch.nn.Sequential(TorchBlock(4), TorchBlock(4))

    def forward(self, x):
        return self.body(self.stem(x))


def net():
    return Net(nnx.Rngs(0))


def test_a_pair_with_the_same_names_agrees():
    model = net()
    before = np.array(model.conv_in.kernel[...])
    report = verify.compare(model, TorchNet(), (X,))
    assert report.ok, report.table()
    layers = [row.name for row in report.rows if row.stage == "layer"]
    assert layers == [
        "conv_in",
        *(f"blocks.{i}{part}" for i in range(2) for part in (".norm", ".conv", "")),
    ]
    gradients = [row.name for row in report.rows if row.stage == "gradient"]
    # in the order of the backward pass
    assert gradients[0] == "blocks.1.conv.weight" and gradients[-1] == "input 0" and len(gradients) == 11
    assert all(row.jax_error is None for row in report.rows)
    np.testing.assert_array_equal(model.conv_in.kernel[...], before)


def test_a_pair_with_other_names_agrees_by_a_map():
    report = verify.compare(net(), OtherNames(), (X,), names={"conv_in": "stem", "blocks": "body"}, gradients=False)
    assert report.ok, report.table()
    assert [row.name for row in report.rows if row.stage == "layer"][:2] == ["conv_in", "blocks.0.norm"]


def test_a_difference_deep_inside_is_named():
    first = verify.compare(net(), TorchNet(eps=1e-2), (X,), gradients=False).first_divergence
    assert (first.stage, first.name, first.shape) == ("layer", "blocks.1.norm", (2, 6, 6, 4))


def test_shapes_that_differ_are_told():
    class Unpadded(TorchBlock):
        def forward(self, x):
            return self.conv(torch.relu(self.norm(x)))

    twin = TorchNet()
    twin.blocks[1].conv.padding = (0, 1)
    twin.blocks[1].__class__ = Unpadded
    first = verify.compare(net(), twin, (X,), gradients=False).first_divergence
    assert first.name == "blocks.1.conv" and first.error == float("inf")
    assert first.note == "shapes differ: JAX (2, 6, 6, 4), PyTorch (2, 4, 4, 6)"


def test_names_that_do_not_match_stand_side_by_side():
    with pytest.raises(UserError) as error:
        verify.compare(net(), OtherNames(), (X,))
    lines = str(error.value).splitlines()
    assert any(re.match(r"  JAX +\| +PyTorch$", line) for line in lines)
    assert any("conv_in.weight" in line and "|" in line for line in lines)
    assert "stem.weight (4, 3, 3, 3)" in str(error.value) and any("pass names=" in line for line in lines)
    assert "    'conv_in': 'stem'," in lines[lines.index("verify.propose finds:") :]


def test_weights_that_are_not_finite_are_named():
    twin = TorchNet()
    with torch.no_grad():
        twin.blocks[0].conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinity: blocks\.0\.conv\.weight\."):
        verify.compare(net(), twin, (X,))


@pytest.mark.parametrize("side", ["JAX", "PyTorch"])
def test_in_float32_the_oracle_says_which_side_is_off(side):
    model, twin = net(), TorchNet()

    class CoarseJax(nnx.Conv):
        def __call__(self, x):
            return super().__call__(x).astype(jnp.bfloat16).astype(x.dtype)

    class CoarseTorch(torch.nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return y.bfloat16().to(x.dtype) if x.dtype == torch.float32 else y

    if side == "JAX":
        from ddpm_jax.weights import bridge

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(bridge.RULES, CoarseJax, bridge.RULES[nnx.Conv])
            model.blocks[1].conv.__class__ = CoarseJax
            report = verify.compare(model, twin, (X,), dtype="float32", gradients=False)
    else:
        twin.blocks[1].conv.__class__ = CoarseTorch
        report = verify.compare(model, twin, (X,), dtype="float32", gradients=False)
    first = report.first_divergence
    assert first.name == "blocks.1.conv"
    off, right = (first.jax_error, first.torch_error)[:: 1 if side == "JAX" else -1]
    assert off > 1e-4 > 1e-6 > right
    assert report.verdict().split(". ")[0].endswith(f"look at {side}")


class JaxReLU(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return 1 + nnx.relu(self.linear(x))


class TorchReLU(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(3))
            self.linear.bias.zero_()

    def forward(self, x):
        x = self.linear(x)
        return 1 + (x.clamp(min=0) if x.dtype == torch.float32 else torch.relu(x))


@pytest.mark.parametrize("nearest", [0.0, 0.1])
def test_a_divergence_at_a_kink_is_told_from_a_fault(nearest):
    """At zero itself clamp has the gradient 1 and relu 0: both are right, and the verdict says why they differ."""
    x = np.array([[1.0, -2.0, nearest]])
    report = verify.compare(JaxReLU(), TorchReLU(), (x,), dtype="float32")
    assert report.ok == (nearest > 0)
    assert ("a ReLU's input within rounding of zero: 0e+00" in report.verdict()) == (nearest == 0)


# Recording ------------------------------------------------------------------------------------------------------


def calls_of(model, *args):
    """What an observer sees of a program that is not compiled."""
    program = program_of(model, {}, Options(weights="own"))
    given = placed_inputs(args, {}, {}, "float32")
    return run(program, given, "float32", Options(weights="own"))[0].calls


def test_recording_is_undone_even_after_an_exception():
    model = net()
    kinds = {type(module) for _, module in nnx.iter_modules(model)}
    before = {kind: kind.__dict__.get("__call__") for kind in kinds}
    with pytest.raises(ZeroDivisionError), patched(kinds, lambda call, self, args, kwargs: call(self, *args, **kwargs)):
        assert Block.__call__ is not before[Block]
        raise ZeroDivisionError
    assert {kind: kind.__dict__.get("__call__") for kind in kinds} == before


def test_a_module_called_twice_is_numbered():
    class Thrice(nnx.Module):
        def __init__(self):
            self.conv = net().blocks[0].conv

        def __call__(self, x):
            return self.conv(self.conv(self.conv(x)))

    model, twin = Thrice(), torch.nn.Sequential(*[torch.nn.Conv2d(4, 4, 3, padding=1)] * 3)
    with recorded(twin) as theirs:
        twin(torch.zeros(1, 4, 4, 4))
    assert [call.name for call in calls_of(model, np.zeros((1, 4, 4, 4)))] == ["conv", "conv#2", "conv#3"]
    assert [call.name for call in theirs.calls if call.path] == ["0", "0#2", "0#3"]
    assert theirs.calls[0].inputs["0"].shape == theirs.calls[0].outputs[""].shape == (1, 4, 4, 4)


# Errors and tolerances ------------------------------------------------------------------------------------------


def test_relative_errors():
    assert verify.relative_error([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert verify.relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert verify.relative_error(np.zeros(0), np.zeros(0)) == 0.0
    assert verify.relative_error([1e-30], [0.0]) == float("inf")
    assert verify.relative_error([1e-3], [0.0], floor=1.0) == 1e-3
    for bad in (np.nan, np.inf):
        assert verify.relative_error([bad], [bad]) == verify.relative_error([1.0], [bad]) == float("inf")


def test_tolerances():
    assert verify.tolerance("layer", "float64") == verify.tolerance("layer", "float64", "tpu") == 1e-10
    assert verify.tolerance("layer", "float32", "gpu") > verify.tolerance("layer", "float32", "cpu")
    for arguments in (("colour", "float64"), ("layer", "float16")):
        with pytest.raises(UserError, match=r"there is no tolerance for .* quantities: gradient"):
            verify.tolerance(*arguments)


# Reports --------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_report():
    rows = [
        Row("layers", "good", (2, 3), 1e-12, 1e-10),
        Row("layers", "<bad>", (2,), float("inf"), 1e-10, note="shapes differ"),
        Row("output", "output", (), 1e-3, 1e-5, jax_error=1e-3, torch_error=1e-7),
    ]
    return Report("a & b", {"dtype": "float64"}, rows)


def test_the_table(broken_report):
    short, full = broken_report.table(), broken_report.table(every_row=True)
    assert "<bad>" in short and "good" not in short and "good" in full
    assert "DIVERGENCE, first at layers: <bad> (2,), error inf" in short and "2 of 3 quantities diverge" in short
    assert not broken_report.ok and broken_report.first_divergence.name == "<bad>"
    assert Report("", {}, broken_report.rows[:1]).verdict().startswith("agreement: all 1")
    assert "look at JAX" in Report("", {}, broken_report.rows[2:]).verdict()


def test_json_is_valid_without_infinity(broken_report):
    def refuse(constant):
        raise AssertionError(constant)

    (report,) = json.loads(to_json([broken_report]), parse_constant=refuse)
    assert [row["error"] for row in report["rows"]] == [1e-12, "inf", 1e-3]
    assert [row["ok"] for row in report["rows"]] == [True, False, False] and report["ok"] is False
    assert report["rows"][0]["shape"] == [2, 3] and report["title"] == "a & b"


def test_html_stands_alone(broken_report):
    page = to_html([broken_report, broken_report])
    assert not re.search(r"https?:|src=|<link|<script|@import|url\(", page)
    assert "&lt;bad&gt;" in page and "<bad>" not in page and "a &amp; b" in page
    assert page.count("<table>") == page.count("</table>") == 2 and page.count("<svg") == 6


def test_write_makes_the_folder(broken_report, tmp_path):
    paths = verify.write([broken_report], tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "report.html", "report.md"]
    assert paths[0].read_text() == to_json([broken_report]) and paths[1].read_text() == to_html([broken_report])


# Networks and the command ---------------------------------------------------------------------------------------


def test_some_stages_alone():
    verification = Verification("mlp")
    report = verification.run(("schedule", "sampler step"))
    assert report.ok and {row.stage for row in report.rows} == {"schedule", "sampler step"}
    with pytest.raises(UserError, match=r"stages must be some of schedule, .*; got colours"):
        verification.run(("colours",))


def test_the_command_agrees_and_leaves_files(tmp_path, capsys):
    assert cli.main(["verify", "mlp", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "mlp, float64 on cpu" in out and "agreement: all" in out
    (report,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["ok"] and {row["stage"] for row in report["rows"]} >= {"schedule", "layers", "loss", "trajectory"}
    assert (tmp_path / "out" / "report.html").exists()


def test_the_command_fails_where_something_is_broken(tmp_path, capsys, monkeypatch):
    from ddpm_torch_ref.training import averages

    monkeypatch.setattr(averages, "decays", lambda step, decay: [decay / 2])
    assert cli.main(["verify", "mlp", "--out", str(tmp_path)]) == 1
    assert "DIVERGENCE, first at average: layers.0." in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())[0]["ok"] is False


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["nonet"], "the network must be one of unet, .*; got 'nonet'"),
        (["--weights", "w.pt"], "--weights needs the name of the one network"),
        (["mlp", "conv_net", "--weights", "w.pt"], "got 2 names"),
        (["mlp", "--weights", "absent.npz"], "absent.npz"),
    ],
)
def test_mistakes(arguments, shown, tmp_path, capsys):
    assert cli.main(["verify", *arguments, "--out", str(tmp_path)]) == 2
    assert re.search(shown, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def short(monkeypatch):
    """Only what says that the weights were taken, and no compiled gradients."""
    run = Verification.run
    monkeypatch.setattr(Verification, "run", lambda self: run(self, ("layers", "output")))


@pytest.mark.parametrize(("name", "left_out"), [("mlp", ""), ("conv_net", ""), ("conv_net", "num_batches_tracked")])
def test_weights_under_the_twins_names(short, tmp_path, name, left_out):
    """With or without PyTorch's counters of BatchNorm, which say nothing."""
    from ddpm_torch_ref import models as twin_models

    tensors = {
        key: x for key, x in twin_models.create(name).state_dict().items() if not left_out or left_out not in key
    }
    torch.save(tensors, tmp_path / "own.pt")
    assert cli.main(["verify", name, "--weights", str(tmp_path / "own.pt"), "--out", str(tmp_path)]) == 0


def test_weights_under_the_originals_names(short, tmp_path):
    from ddpm_torch_ref import models as twin_models

    own = twin_models.create("mlp").state_dict()
    kinds = ("weight", "bias")
    original = {f"{2 * i + 1}.{kind}": own[f"layers.{i}.{kind}"] for i in range(4) for kind in kinds}
    torch.save(original, tmp_path / "original.pt")
    assert cli.main(["verify", "mlp", "--weights", str(tmp_path / "original.pt"), "--out", str(tmp_path)]) == 0


def test_weights_of_another_network_are_refused(tmp_path, capsys):
    from ddpm_torch_ref import models as twin_models

    torch.save(twin_models.create("conv_net").state_dict(), tmp_path / "wrong.pt")
    arguments = ["verify", "mlp", "--weights", str(tmp_path / "wrong.pt"), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "conv_in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_adam_makes_of_rounding_is_told():
    """Only of numbers whose gradients the two sides do not share: another fault of an optimiser has no such excuse."""
    theirs = np.linspace(1, 2, 10)
    ours = theirs + 0.1 * (np.arange(10) < 4)
    exact = np.ones(10)
    rounded = np.where(np.arange(10) < 3, 1e-9, 1.0)
    noisy = [(exact, exact), (np.where(rounded < 1, -1e-9, 1.0), rounded)]
    assert stages._of_rounding(ours, theirs, 1e-3, noisy).startswith("3 of the 4 numbers that differ had a gradient")
    assert stages._of_rounding(ours, theirs, 1e-3, [(exact, exact)] * 3) == ""


def test_gradients_wait_on_disk_where_they_are_large(monkeypatch, tmp_path):
    """The same report with files as without, and none is left."""
    pair = Net(rngs=nnx.Rngs(0)), TorchNet(eps=1e-3), X
    usual = verify.compare(*pair, dtype="float32")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(recording, "LARGE", 0)
    saved = []
    save = np.save
    monkeypatch.setattr(np, "save", lambda path, array: (saved.append(path), save(path, array)))
    found = verify.compare(*pair, dtype="float32")
    count = sum(row.stage == "gradient" for row in found.rows)
    assert len(saved) == 3 * count and count > 8  # of JAX, of PyTorch, and of PyTorch in float64
    assert [dataclasses.astuple(row) for row in found.rows] == [dataclasses.astuple(row) for row in usual.rows]
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_reading_float32_weights_is_not_computing_in_float32():
    """PyTorch's weights stay in float32, and the float64 run is of a copy: no layer around another is said to be less precise."""
    report = verify.compare(Net(rngs=nnx.Rngs(0)), TorchNet(eps=1.01e-5).float(), X)  # which float32 would excuse
    assert [fault.name for fault in report.faults] == ["blocks.1.norm"], report.table()
    assert not report.ok and not report.warnings


def test_arrays_on_disk():
    arrays = recording.OnDisk({"small": np.arange(3), "large": np.zeros((600, 300))})
    arrays["large"] = np.ones((600, 300))
    arrays["more"] = np.ones((600, 300))[:, ::2]
    arrays.order(["more", "small", "large"])
    assert list(arrays) == ["more", "small", "large"] and len(arrays) == 3
    assert arrays["large"].all() and arrays["more"].shape == (600, 150) and (arrays["small"] == np.arange(3)).all()
    del arrays["large"]
    assert "large" not in arrays and arrays["more"].all()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_on_one_core(tmp_path):
    """Where XLA would have one thread, and a callback in it would wait for another."""
    here = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from ddpm_jax import cli; "
    command = [
        sys.executable,
        "-c",
        f"{here}raise SystemExit(cli.main(['verify', 'tiny_unet', '--out', '{tmp_path}']))",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
