"""Every network as an ONNX file: what ONNX Runtime computes, for any size of batch, beside the twin and JAX."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_networks import CASES
from tolerances import relative_error, tolerance
from twins import SMALL, make_pair

from ddpm_jax import models, processes, schedules
from ddpm_jax.conversion.runs import to_run
from ddpm_jax.errors import UserError
from ddpm_jax.export import onnx, to_onnx
from ddpm_jax.presets import SampleConfig, preset
from ddpm_jax.training import open_run
from ddpm_torch_ref.models import MODELS

ort = pytest.importorskip("onnxruntime")

FLOW, BLENDING = processes.FlowMatching(), processes.AlphaBlending(500)
CHAIN = processes.GaussianDiffusion(schedules.linear(30), "v")
LEARNED = processes.GaussianDiffusion(schedules.cosine_unclipped(40), loss="hybrid")
EXPORTED = {
    # name: (network, options, process; None: its author's)
    **{name: (network, options, None) for name, (network, options, *_) in CASES.items()},
    # sines of timesteps, at its frequencies, are rounding alone in float32
    "edm_unet, NCSN++ with classes": (*CASES["edm_unet, NCSN++ with classes"][:2], processes.EDM()),
    "mlp, flow": ("mlp", {"dim": 16}, FLOW),
    "unet, variance and classes": ("unet", SMALL | {"learn_variance": True, "num_classes": 5}, LEARNED),
    "unet, self-conditioned": ("unet", SMALL | {"self_conditioning": True}, None),
    "unet, classes, flow": ("unet", SMALL | {"num_classes": 3}, FLOW),
    "tiny_unet, blending": ("tiny_unet", {"image_size": 8, "num_steps": 500}, BLENDING),
    "unet, self-conditioned, edm": ("unet", SMALL | {"self_conditioning": True}, processes.EDM()),
    "rms_unet, variance": ("rms_unet", CASES["rms_unet"][1] | {"learn_variance": True}, LEARNED),
}
QUICK = ["mlp, flow", "conv_net"]


def run_of(folder, name, options, process):
    """A run whose weights are random, none of them zero, and the twin that has the same."""
    model, twin = make_pair(name, "float32", **options)
    tensors = {key: tensor.numpy() for key, tensor in twin.state_dict().items() if "num_batches" not in key}
    sampling = None if process is None else SampleConfig("ddim", steps=2)
    return open_run(to_run(folder, model.config, tensors, process=process, sampling=sampling)), twin


def fed(run, num, seed):
    """Inputs as a caller makes them, channels first."""
    rng = np.random.default_rng(seed)
    *size, channels = run.shape
    chain = isinstance(run.process, processes.GaussianDiffusion)
    t = rng.choice(run.process.schedule.timesteps, num).astype(np.int64) if chain else rng.random(num, np.float32)
    found = {"x_t": rng.standard_normal((num, channels, *size), np.float32), "t": t}
    if getattr(run.config.model, "self_conditioning", False):
        found["guess"] = rng.standard_normal((num, channels, *size), np.float32)
    if run.class_names:
        found["labels"] = rng.integers(0, len(run.class_names), num)
    return found


def by_the_twin(twin, process, inputs):
    """What the twin says, told of the time what the papers' networks are told."""
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    sigma = given["t"][:, None, None, None]
    seen = given["x_t"] / (sigma**2 + process.sigma_data**2) ** 0.5 if process.name == "edm" else given["x_t"]
    time = {
        "diffusion": lambda t: t,
        "edm": lambda t: t.log() / 4,
        "flow": lambda t: t * (process.num_steps - 1),
        "blending": lambda t: (1 - t) * (process.num_steps - 1),
    }[process.name](given["t"])
    x = torch.cat([seen, given["guess"]], 1) if "guess" in given else seen
    with torch.no_grad():
        return twin(x, time, given.get("labels")).numpy()


def test_every_network_is_here():
    assert {network for network, *_ in EXPORTED.values()} == set(MODELS) == set(models.NETWORKS) & set(MODELS)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in EXPORTED])
def test_onnx_runtime_computes_the_same(case, tmp_path):
    run, twin = run_of(tmp_path / "run", *EXPORTED[case])
    path, allowed = tmp_path / "out.onnx", tolerance("output", "float32")
    error = to_onnx(run, path)
    assert 0 < error <= allowed  # of JAX
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]
    for put in (*session.get_inputs(), *session.get_outputs()):
        assert put.shape[0] == "batch", put
    for num in (1, 2, 5, 7):
        inputs = fed(run, num, seed=num)
        assert list(inputs) == names
        (found,) = session.run(None, inputs)
        assert relative_error(found, by_the_twin(twin, run.process, inputs)) <= allowed
    said = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert list(said["inputs"]) == names and said["network"] == run.config.model.network
    assert said["output"]["learned_variance"] == bool(getattr(run.config.model, "learn_variance", False))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("small") / "run", "conv_net", {"dim": 4, "image_size": 8}, CHAIN)[0]


def test_the_levels_within_are_those_of_the_process(small, tmp_path):
    to_onnx(small, tmp_path / "out.onnx", "params")
    session = ort.InferenceSession(str(tmp_path / "out.onnx"))
    said = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    path, abar = said["path"], np.cumprod(1 - np.linspace(1e-4, 0.02, 30))
    np.testing.assert_allclose(np.square(path["alphas"]), [1, *abar], rtol=1e-12)
    np.testing.assert_allclose(np.square(path["sigmas"]), [0, *(1 - abar)], rtol=1e-9, atol=0)
    assert path["times"] == list(range(-1, 30)) and said["output"]["prediction"] == "v"
    assert said["weights"] == {"which": "params", "step": 0} and said["null_label"] is None


def test_a_file_says_nothing_of_the_machine_that_made_it(small, tmp_path):
    to_onnx(small, tmp_path / "out.onnx")
    held = (tmp_path / "out.onnx").read_bytes()
    assert b"null_label" in held  # what it says of itself is there
    for word in (str(Path(onnx.__file__).parents[2]), "onnx.py", "stack_trace"):
        assert word.encode() not in held


def test_a_file_that_differs_from_jax_is_not_kept(small, tmp_path, monkeypatch):
    real = onnx.to_torch

    def bent(*args):
        tensors = real(*args)
        name = next(iter(tensors))
        return tensors | {name: tensors[name] * 1.001}

    monkeypatch.setattr(onnx, "to_torch", bent)
    with pytest.raises(UserError, match=r"out\.onnx is not kept: ONNX Runtime and JAX differ by .* allowed is 2e-05"):
        to_onnx(small, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(small, tmp_path, monkeypatch):
    path = tmp_path / "out.onnx"
    with pytest.raises(UserError, match="weights must be one of ema, params; got 'best'"):
        to_onnx(small, path, "best")
    with monkeypatch.context() as patch:
        patch.delitem(MODELS, "conv_net")
        with pytest.raises(UserError, match=r"conv_net has none\. These have: unet, .*\. A \.stablehlo needs none"):
            to_onnx(small, path)
    with monkeypatch.context() as patch:
        patch.delattr("ddpm_torch_ref.processes.GaussianDiffusion")
        with pytest.raises(UserError, match="a process that has a PyTorch twin, and diffusion has none"):
            to_onnx(small, path)
    mean = replace(small, config=preset("digits-meanflow"))
    with pytest.raises(UserError, match="told one time, and meanflow is of two"):
        to_onnx(mean, path)
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "MOST_BYTES", 100)
        with pytest.raises(UserError, match=r"one \.onnx file holds weights of 0\.0 GB at most; those of .*run have"):
            to_onnx(small, path)
    with monkeypatch.context() as patch:
        found = onnx.importlib.util.find_spec
        patch.setattr(onnx.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
        with pytest.raises(
            UserError, match=r'needs onnx and onnxscript and onnxruntime: pip install "ddpm-jax\[onnx\]"'
        ):
            to_onnx(small, path)
    assert not path.exists()
