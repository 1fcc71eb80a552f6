"""Traces: what either framework writes is read back number by number, and a file that is not sound is refused by name."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from ddpm_jax import cli, verify, weights
from ddpm_jax.errors import UserError
from ddpm_jax.verify import traces

torch = pytest.importorskip("torch")
X = np.random.default_rng(0).standard_normal((2, 3, 4, 4))


class TorchNet(torch.nn.Module):
    def __init__(self, eps=1e-5):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 4, eps=eps)
        self.act = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        return {"h": self.act(self.norm(self.conv(x)))}


class Net(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(3, 4, (3, 3), padding=1, rngs=nnx.Rngs(0))
        self.norm = nnx.GroupNorm(4, 2, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return {"h": jax.jit(nnx.relu)(self.norm(self.conv(x)))}


def last(array):
    return np.moveaxis(array, 1, -1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A trace of either framework of one network, in float64 and float32."""
    folder = tmp_path_factory.mktemp("traces")
    twin = TorchNet().double().eval()
    verify.record(twin, X, folder / "torch.safetensors")
    with jax.enable_x64(True):
        verify.record(weights.load_torch(Net(), twin.state_dict()), last(X), folder / "jax.safetensors")
    return folder


def test_everything_comes_back(pair):
    about, calls = traces.read(pair / "torch.safetensors")
    assert [call["name"] for call in calls] == ["conv", "norm", "act", ""]
    assert (about["side"], about["model"], about["layers"]) == ("PyTorch", "TorchNet", ["conv", "norm", "act"])
    assert about["environment"]["torch"] == torch.__version__ and about["environment"]["dtype"] == "float64"
    twin = TorchNet().double()
    x = torch.from_numpy(X)
    conv = twin.conv(x)
    np.testing.assert_array_equal(calls[0]["inputs"]["0"], X)
    np.testing.assert_array_equal(calls[0]["outputs"][""], conv.detach())
    # ReLU works in place: what it was given is what the norm returned
    np.testing.assert_array_equal(calls[2]["inputs"]["0"], twin.norm(conv).detach())
    np.testing.assert_array_equal(calls[3]["outputs"]["h"], torch.relu(twin.norm(conv)).detach())
    np.testing.assert_array_equal(calls[0]["parameters"]["weight"], twin.conv.weight.detach())
    assert calls[1]["settings"]["eps"] == 1e-5 and calls[1]["settings"]["num_groups"] == 2


def test_both_frameworks_write_the_same(pair):
    ours, theirs = (
        {call["name"]: call for call in traces.read(pair / f"{side}.safetensors")[1]} for side in ("jax", "torch")
    )
    for name, place in (("conv", ""), ("norm", ""), ("", "h")):
        moved = np.moveaxis(theirs[name]["outputs"][place], 1, -1)
        np.testing.assert_allclose(ours[name]["outputs"][place], moved, rtol=1e-12, atol=1e-12)
        assert ours[name]["outputs"][place].shape == moved.shape


def test_it_is_a_safetensors_file(pair):
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = safetensors.load_file(pair / "torch.safetensors")
    np.testing.assert_array_equal(arrays["0/in/0"], X)


def test_half_precision(tmp_path):
    half = verify.record(TorchNet().bfloat16().eval(), X, tmp_path / "half.safetensors")
    about, calls = traces.read(half)
    assert about["environment"]["dtype"] == "bfloat16" and calls[0]["outputs"][""].dtype == np.float32
    wanted = TorchNet().bfloat16().conv(torch.from_numpy(X).bfloat16()).float().detach()
    np.testing.assert_array_equal(calls[0]["outputs"][""], wanted)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, scale=1.0):
        return linen.Dense(3, name="out")(jnp.tanh(linen.Dense(5, name="fc")(x))) * scale


def test_linen_and_equinox(tmp_path):
    eqx = pytest.importorskip("equinox")
    x = np.random.default_rng(0).standard_normal((4,)).astype(np.float32)
    module = Linen()
    variables = module.init(jax.random.key(0), x)
    mlp = eqx.nn.MLP(4, 3, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
    dense = {0: "fc", 1: "out"}
    mlp = eqx.tree_at(
        lambda m: [part for layer in m.layers for part in (layer.weight, layer.bias)],
        mlp,
        [a for i in dense for a in (variables["params"][dense[i]]["kernel"].T, variables["params"][dense[i]]["bias"])],
    )
    first = verify.record((module, variables), x, tmp_path / "linen.safetensors", scale=1.0)
    second = verify.record(mlp, x, tmp_path / "equinox.safetensors")
    _, calls = traces.read(first)
    assert [call["name"] for call in calls] == ["fc", "out", ""] and calls[-1]["inputs"]["scale"] == 1.0
    _, others = traces.read(second)
    by_name = {call["name"]: call for call in others}
    for ours, theirs in (("fc", "layers.0"), ("out", "layers.1"), ("", "")):
        wanted = next(call for call in calls if call["name"] == ours)["outputs"][""]
        np.testing.assert_allclose(by_name[theirs]["outputs"][""], wanted, rtol=1e-6, atol=1e-6)


ALONE = """
import sys
for name in {hidden}:
    sys.modules[name] = None
sys.path.insert(0, {folder!r})
import numpy as np, traces
{model}
traces.record(model, np.ones((2, 3), np.float32), {path!r})
assert not any(name.startswith("ddpm_jax.") for name in sys.modules)
"""


@pytest.mark.parametrize("hidden, model", [
    (["jax", "flax", "safetensors", "ddpm_jax"], "import torch; model = torch.nn.Sequential(torch.nn.Linear(3, 2))"),
    (["torch", "safetensors", "ddpm_jax"], "from flax import nnx; model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))"),
])  # fmt: skip
def test_the_recorder_is_one_file(tmp_path, hidden, model):
    """Copied elsewhere, it works where one framework is installed, and this project is not."""
    shutil.copy(traces.__file__, tmp_path)
    path = str(tmp_path / "made.safetensors")
    code = ALONE.format(hidden=hidden, model=model, folder=str(tmp_path), path=path)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240, cwd=tmp_path)
    assert len(traces.read(path)[1]) == 2


def edited(path, change):
    """A copy of a trace with what it says of itself changed."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    about = json.loads(header["__metadata__"]["trace"])
    change(about, header)
    header["__metadata__"] = {"trace": json.dumps(about)} if about else {}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


UNSOUND = {
    "cut short": (lambda path: path.read_bytes()[:-100], r"is cut short: \d+ bytes of \d+"),
    "cut in its header": (lambda path: path.read_bytes()[:200], r"is cut short: 200 bytes, its header alone"),
    "a number changed": (lambda path: path.read_bytes()[:-9] + b"\x01" + path.read_bytes()[-8:], r"is damaged: its numbers"),
    "another version": (lambda path: edited(path, lambda about, _: about.update(version=2)), r"of version 2; this reads version 1"),
    "no trace": (lambda path: edited(path, lambda about, _: about.clear()), r"is no trace: its header has no readable entry"),
    "a tensor missing": (lambda path: edited(path, lambda _, header: header.pop("0/in/0")), r"is damaged: KeyError"),
    "a picture": (lambda path: b"\x89PNG\r\n\x1a\n" * 9, r"is no safetensors file"),
    "empty": (lambda path: b"", r"is no safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNSOUND)
def test_what_is_not_sound_is_refused(pair, tmp_path, what):
    make, message = UNSOUND[what]
    path = tmp_path / "given.safetensors"
    path.write_bytes(make(pair / "torch.safetensors"))
    with pytest.raises(UserError, match=message) as error:
        traces.read(path)
    assert str(path) in str(error.value)


def test_what_cannot_be_recorded(tmp_path):
    with pytest.raises(UserError, match=r"model must be a torch\.nn\.Module.*got a function"):
        verify.record(lambda x: x, X, tmp_path / "a")
    with pytest.raises(UserError, match=r"folder .* does not exist"):
        verify.record(TorchNet().double(), X, tmp_path / "no" / "a")
    with pytest.raises(UserError, match="must return arrays; got a str"):
        verify.record(type("Words", (torch.nn.Module,), {"forward": lambda self, x: "x"})(), X, tmp_path / "a")
    assert not list(Path(tmp_path).iterdir())


# Two traces


def test_jax_to_torch(pair):
    report = verify.compare_traces(pair / "jax.safetensors", pair / "torch.safetensors")
    assert report.ok, report.table()
    assert {row.name for row in report.rows} >= {"conv", "norm"}


def test_a_version_to_its_next(pair, tmp_path):
    changed = verify.record(TorchNet(eps=1e-3).double().eval(), X, tmp_path / "next.safetensors")
    report = verify.compare_traces(changed, pair / "torch.safetensors")
    assert report.first_divergence.name == "norm"
    half = verify.record(TorchNet().bfloat16().eval(), X, tmp_path / "half.safetensors")
    assert verify.compare_traces(half, pair / "torch.safetensors").ok
    wrong = verify.record(TorchNet(eps=1.0).bfloat16().eval(), X, tmp_path / "wrong.safetensors")
    assert verify.compare_traces(wrong, pair / "torch.safetensors").first_divergence.name == "norm"


def test_reading_and_comparing_need_no_torch(pair):
    code = (
        "import sys; sys.modules['torch'] = None; from ddpm_jax import verify;"
        "report = verify.compare_traces(*sys.argv[1:]); sys.exit(not report.ok)"
    )
    paths = [str(pair / f"{name}.safetensors") for name in ("jax", "torch")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, timeout=240)


def test_traces_that_do_not_belong_together(pair, tmp_path):
    other = verify.record(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)).double(), X, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"of other models \(Sequential, TorchNet\).*Layers: 0; act, conv, norm"):
        verify.compare_traces(other, pair / "torch.safetensors")
    fed = verify.record(TorchNet().double(), X + 1, tmp_path / "fed.safetensors")
    with pytest.raises(UserError, match=r"other inputs: their input '0' holds other numbers"):
        verify.compare_traces(fed, pair / "torch.safetensors")
    fewer = verify.record(TorchNet().double(), X[:1], tmp_path / "fewer.safetensors")
    with pytest.raises(UserError, match=r"other inputs: .*\(1, 3, 4, 4\).* with \(2, 3, 4, 4\)"):
        verify.compare_traces(fewer, pair / "torch.safetensors")
    with pytest.raises(UserError, match=r"cannot be read: No such file"):
        verify.compare_traces(tmp_path / "missing", pair / "torch.safetensors")


def test_the_command(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paths = [str(pair / f"{name}.safetensors") for name in ("jax", "torch")]
    assert cli.main(["verify", "--traces", *paths]) == 0
    assert "agreement" in capsys.readouterr().out and (tmp_path / "verify" / "report.html").exists()
    changed = verify.record(TorchNet(eps=1e-3).double().eval(), X, tmp_path / "next.safetensors")
    assert cli.main(["verify", "--traces", changed, paths[1]]) == 1
    assert cli.main(["verify", "--traces", changed, "missing"]) == 2
    assert "missing cannot be read" in capsys.readouterr().err
