"""Pickled networks in the form of NVlabs/edm: read without running anything of them, and refused where they hold anything else."""

import collections
import os
import pickle
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm_jax import denoisers, processes, samplers
from ddpm_jax.conversion.importing import import_weights, recognised
from ddpm_jax.errors import UserError
from ddpm_jax.training.run import open_run
from ddpm_jax.verify import relative_error
from ddpm_jax.weights.pickles import read_pickle
from ddpm_torch_ref import models as twin_models

SMALL = {
    "image_size": 16, "dim": 8, "dim_mults": (2, 2), "num_blocks": 1, "attention_resolutions": (8,), "num_classes": 3,
    "augment_dim": 9,
}  # fmt: skip
NCSNPP = {"embedding": "fourier", "resample": "fir", "residual_input": True}


@pytest.fixture
def nvidia(monkeypatch):
    """The modules that such pickles name, for as long as they are written; to read them nothing of that may be needed."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    class EasyDict(dict):
        __module__, __qualname__ = "dnnlib.util", "EasyDict"

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the source in a pickle was about to be run")

    _reconstruct_persistent_obj.__module__ = persistence.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj, util.EasyDict = _reconstruct_persistent_obj, EasyDict
    for module in (types.ModuleType("torch_utils"), persistence, types.ModuleType("dnnlib"), util):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    class Persistent(torch.nn.Module):
        """Pickled as those are: by the name of its class, its source and its attributes."""

        def __reduce__(self):
            attributes = {name: value for name, value in vars(self).items() if name != "class_name"}
            meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": self.class_name}
            return _reconstruct_persistent_obj, (EasyDict(meta, state=attributes),)

    def persistent(class_name, parts=(), **attributes):
        made = Persistent()
        made.class_name = class_name
        for name, value in attributes.items():
            setattr(made, name, value)
        for name, part in parts:
            made.register_module(name, part) if isinstance(part, torch.nn.Module) else made.register_buffer(name, part)
        return made

    yield persistent


def as_theirs(persistent, twin, taps, name="SongUNet"):
    """A twin's modules as the original's, with the buffers of its filters."""
    if isinstance(twin, torch.nn.ModuleDict):
        return torch.nn.ModuleDict({key: as_theirs(persistent, part, taps, "UNetBlock") for key, part in twin.items()})
    made = persistent(name, dropout=0.25, skip_scale=np.sqrt(0.5), training=False)
    for key, parameter in twin.named_parameters(recurse=False):
        made.register_parameter(key, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))
    for key, buffer in twin.named_buffers(recurse=False):
        made.register_buffer(key, buffer)
    for key, part in twin.named_children():
        if not isinstance(part, torch.nn.Dropout):
            made.register_module(key, as_theirs(persistent, part, taps, "Conv2d"))
    if isinstance(twin, torch.nn.Conv2d):
        made.register_buffer("resample_filter", torch.ones(1, 1, taps, taps) / taps**2)
    return made


@pytest.fixture(params=[pytest.param({}, marks=pytest.mark.slow), NCSNPP], ids=["DDPM++", "NCSN++"])
def saved(request, nvidia, tmp_path):
    """A file of theirs, and the twin that it was made of."""
    torch.manual_seed(0)
    twin = twin_models.create("edm_unet", **SMALL, **request.param).eval()
    for parameter in twin.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inner = as_theirs(nvidia, twin, 4 if request.param else 2)
    precond = nvidia("EDMPrecond", [("model", inner)], sigma_data=0.6, sigma_min=0, sigma_max=float("inf"))
    content = {"ema": precond, "loss_fn": nvidia("EDMLoss", P_mean=-1.2), "dataset_kwargs": {"path": "cifar10.zip"}}
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(content))
    return path, twin


def test_a_pickled_network_becomes_a_run(saved, tmp_path, monkeypatch):
    path, twin = saved
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.delitem(sys.modules, name)
    run = open_run(import_weights(str(path), tmp_path / "run"))
    config = run.config
    assert (config.process, config.sample.sampler, config.sample.steps) == (processes.EDM(0.6), samplers.Heun(), 18)
    assert (config.model.dropout, config.model.num_classes, config.sample.clip) == (0.25, 3, None)
    assert "sigma from 80 to 0.002, sigma_data 0.6" in "\n".join(recognised(run))
    rng = np.random.default_rng(0)
    x, sigma = rng.standard_normal((2, 16, 16, 3)).astype("float32"), np.array([0.3, 20.0], np.float32)
    hat = run.denoiser(np.array([0, 2]))(jnp.asarray(x), jnp.asarray(sigma))
    total = np.sqrt(sigma**2 + 0.36)[:, None, None, None]
    with torch.no_grad():
        seen = torch.from_numpy(np.moveaxis(x / total, -1, 1).copy())
        F = np.moveaxis(twin(seen, torch.from_numpy(np.log(sigma) / 4), torch.tensor([0, 2])).numpy(), 1, -1)
    wanted = 0.36 / total**2 * x + sigma[:, None, None, None] * 0.6 / total * F
    assert relative_error(hat.x_0, wanted) < 2e-6
    assert denoisers.as_denoiser(run.denoiser(np.array([0, 2]))).process == processes.EDM(0.6)


class Evil:
    """Says to the unpickler: call this with that."""

    def __init__(self, function, *args):
        self.called = function, args

    def __reduce__(self):
        return self.called


def exploits(folder):
    touched = folder / "touched"
    # a class that is built, then given a state: by way of __setstate__, of its attributes, and of a tuple for slots
    built = (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c"
        + bytes([6 + len(str(touched))])
        + b"touch "
        + str(touched).encode()
    )
    return {
        "system": pickle.dumps({"ema": Evil(os.system, f"touch {touched}")}),
        "eval": pickle.dumps([Evil(eval, f"open({str(touched)!r}, 'w')")]),
        "open": pickle.dumps({"x": Evil(open, str(touched), "w")}),
        "import": pickle.dumps(Evil(__import__, "antigravity")),
        "getattr": pickle.dumps(Evil(getattr, Evil(__import__, "os"), "getcwd")),
        "reduce": built + b"\x85R.",
        "build a class": b"\x80\x04cos\nsystem\nN}\x8c\x0c__setstate__\x8c\x01xs\x86b.",
        "newobj": b"\x80\x04cos\nsystem\n\x8c\x04true\x85\x81.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x04\x8c\x01x\x51.",
    }


@pytest.mark.parametrize("name", exploits(Path("folder")))
def test_what_would_run_is_refused_by_name(name, tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(exploits(tmp_path)[name])
    with pytest.raises(UserError, match=r"evil\.pkl is (refused|not a readable pickle)") as caught:
        read_pickle(path)
    assert not (tmp_path / "touched").exists()
    if name not in ("extension", "persistent", "build a class"):
        assert any(
            word in str(caught.value) for word in ("posix.system", "builtins.", "io.open", "os.system", "_io.open")
        )


def test_plain_data_is_read(tmp_path):
    weird = [float("inf"), None, (1, {"a": b"x"}), {1, 2}, np.float64(0.5), np.int64(3), collections.OrderedDict(a=1)]
    weird.append(torch.arange(6.0).reshape(2, 3).T)
    weird.append(weird[-1])
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(weird))
    found = read_pickle(path)
    assert found[:7] == [float("inf"), None, (1, {"a": b"x"}), {1, 2}, 0.5, 3, {"a": 1}]
    np.testing.assert_array_equal(found[7], np.arange(6.0).reshape(2, 3).T)
    assert found[8] is found[7]


def test_loops_and_bombs_end(tmp_path):
    loop: list = []
    loop.append(loop)
    many: list = ["x"] * 10
    for _ in range(40):  # 10^40 strings, of which each list is held once
        many = [many] * 10
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    huge = b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x."
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps([loop, many]))
    assert read_pickle(path)[0] == [None]
    # written by hand: pickle itself gives up on such a depth
    for content in (b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", huge):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"odd\.pkl is not a readable pickle"):
            read_pickle(path)


def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    class Wrong:
        def __init__(self, *args):
            self.args = args

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, self.args

    storage = torch.arange(4.0).storage()
    path = tmp_path / "wrong.pkl"
    for args, words in (
        ((storage, 2, (4,), (1,)), "outside its storage"),
        ((storage, 0, (2, 2), (1, 9)), "outside its storage"),
        ((storage, -1, (2,), (1,)), "outside its storage"),
        ((storage, 0, (1000, 1000), (0, 0)), "more numbers than its storage"),
    ):
        path.write_bytes(pickle.dumps(Wrong(*args, False, collections.OrderedDict())))
        with pytest.raises(UserError, match=words):
            read_pickle(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content, make: content.pop("ema"), "no network: it has to be that of a training run"),
        (lambda content, make: content.update(ema=make("VPPrecond")), "a VPPrecond, which has no counterpart"),
        (
            lambda content, make: content.update(ema=make("EDMPrecond", [("model", make("DhariwalUNet"))])),
            "a DhariwalUNet, which has no counterpart",
        ),
        (
            lambda content, make: content["ema"].model.register_buffer("extra", torch.ones(2)),
            "has beyond it extra",
        ),
        (
            lambda content, make: content["ema"].model.enc["16x16_conv"]._parameters.pop("bias"),
            "lacks enc.16x16_conv.bias",
        ),
    ],
)
def test_other_networks_are_refused(change, words, nvidia, tmp_path):
    twin = twin_models.create("edm_unet", **SMALL)
    content = {"ema": nvidia("EDMPrecond", [("model", as_theirs(nvidia, twin, 2))])}
    change(content, nvidia)
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=words):
        import_weights(str(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def sound():
    """Bytes of a pickle with a bit of everything."""
    return pickle.dumps(
        {"a": torch.arange(6.0), "b": [1, 2.5, "x", None], "c": collections.OrderedDict(d=np.float64(1))}
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_a_sentence(data, sound, tmp_path):
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "damaged.pkl"
    path.write_bytes(content)
    try:
        read_pickle(path)
    except UserError as error:
        assert str(path) in str(error)
