"""Runs as programs: a StableHLO file runs where jax and numpy alone are, and computes what `ddpm sample` does; the commands."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_checks import refusal

from ddpm_jax import cli, cpu_forms, denoisers, models, noise, processes, samplers, schedules
from ddpm_jax.conversion.runs import to_run
from ddpm_jax.errors import UserError
from ddpm_jax.export import to_stablehlo
from ddpm_jax.models import attention
from ddpm_jax.presets import SampleConfig
from ddpm_jax.training import Drawing, open_run
from ddpm_jax.weights import to_numpy

pytestmark = pytest.mark.cpu_forms

SMALL = {"image_size": 8, "channels": 1, "dim": 4, "dim_mults": (1,), "num_blocks": 1, "norm_groups": 2}
ALONE = """
import sys
class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("ddpm_jax", "flax", "optax", "orbax", "torch", "einops", "jaxtyping"):
            raise ImportError(name + " is refused here")
sys.meta_path.insert(0, Refused())
import json, jax, numpy as np
file = np.load(sys.argv[1])
program, about = jax.export.deserialize(bytearray(file["program"])), json.loads(bytes(file["about"]))
given = np.load(sys.argv[2])
found = program.call(*(given[name] for name in about["inputs"]))
np.savez(sys.argv[3], *(found if isinstance(found, (tuple, list)) else [found]))
"""
"""What a user of a file writes, in a process that knows nothing of this project."""


def called_alone(path, **inputs):
    """What the program of a file gives, in a process of its own."""
    given, found = path.with_suffix(".in.npz"), path.with_suffix(".out.npz")
    np.savez(given, **inputs)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, path, given, found],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path.parent,
    )
    assert done.returncode == 0, done.stderr
    return list(np.load(found).values())


def opened(path):
    """A file's program and what it says of itself."""
    file = np.load(path)
    return jax.export.deserialize(bytearray(file["program"])), json.loads(bytes(file["about"]))


def run_of(folder, name, process, **options):
    """A run whose weights are random, none of them zero."""
    model = models.create(name, rngs=0, **options)
    rng = np.random.default_rng(0)
    tensors = {key: rng.normal(0, 0.3, array.shape).astype(np.float32) for key, array in to_numpy(model).items()}
    return open_run(
        to_run(folder, model.config, tensors, process=process, sampling=SampleConfig(samplers.DDIM(), steps=3))
    )


def ours(run, config, numbers, labels=None):
    """Samples of seed 3 as `ddpm sample` draws them."""
    every = noise.sample_keys(3, int(max(numbers)) + 1)[np.array(numbers)]
    steps = None if isinstance(config.sampler, samplers.Adaptive) else config.steps
    shape = (len(numbers), *run.shape)
    return samplers.sample(
        Drawing(run, config).denoiser(labels), config.sampler, every, shape, steps, spacing=config.spacing
    )


def close(found, wanted, tolerance=2e-6):
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max() and np.abs(wanted).max() > 0


# StableHLO


def test_samples_where_the_package_is_not(finished_run, tmp_path, capsys):
    """The pictures of `ddpm sample` with the same seed, pixel by pixel, from a process without this project."""
    path = tmp_path / "digits.stablehlo"
    how = ["--sampler", "dpmpp", "--steps", "3"]
    assert cli.main(["convert", str(finished_run), str(path), *how]) == 0
    assert capsys.readouterr().out == f"{path}\n  for any number of examples at a time, on cpu, cuda and tpu\n"
    out = tmp_path / "samples"
    assert cli.main(["sample", str(finished_run), *how, "--num", "6", "--seed", "3", "--out", str(out)]) == 0
    theirs = np.load(out / "samples.npz")
    numbers, labels = np.arange(6, dtype=np.int32), theirs["labels"].astype(np.int32)
    (x_0,) = called_alone(path, seed=np.int32(3), numbers=numbers, labels=labels)
    program, about = opened(path)
    scaling = about["scaling"]
    pixels = np.clip(np.rint(x_0 * scaling["std"] + scaling["mean"]), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels, theirs["images"])
    assert len(np.unique(pixels)) > 20
    assert program.platforms == ("cpu", "cuda", "tpu") and about["batch"] is None
    assert about["sample"]["sampler"] == "dpmpp" and about["sample"]["steps"] == 3
    # in another batch, and in another order, each is the same
    again = np.asarray(program.call(np.int32(3), numbers[[4, 1]], labels[[4, 1]]))
    close(again, x_0[[4, 1]])


def test_one_estimate(finished_run, tmp_path):
    run, path = open_run(finished_run), tmp_path / "one.stablehlo"
    assert (
        cli.main(["convert", str(finished_run), str(path), "--what", "denoise", "--weights", "params", "--clip", "0.5"])
        == 0
    )
    rng = np.random.default_rng(0)
    x_t, t, labels = rng.standard_normal((3, 8, 8, 1), np.float32), np.int32([19, 7, 0]), np.int32([3, 9, 0])
    found = called_alone(path, x_t=x_t, t=t, labels=labels)
    network = run.denoiser(labels, variables=run.load_variables(ema=False)[0])
    wanted = jax.jit(lambda x_t, t: denoisers.clipped(network, 0.5)(x_t, t))(x_t, t)
    for part, expected in zip(found, (wanted.x_0, wanted.eps), strict=True):
        close(part, expected)
    assert np.abs(found[0]).max() == 0.5
    program, about = opened(path)
    assert about["outputs"] == ["x_0", "eps"] and about["weights"] == {"which": "params", "step": 12}
    assert about["inputs"]["t"] == "int32 (batch): timesteps 0..19, 19 the noisiest"
    assert_nothing_of_this_machine(program.mlir_module(), network)


def assert_nothing_of_this_machine(text, denoise):
    """No form for XLA's CPU compiler, and no custom call but those whose meaning jax keeps."""
    given = np.zeros((3, 8, 8, 1), np.float32), np.zeros(3, np.int32)

    def convolutions(text):
        return len(re.findall(r"= stablehlo\.convolution", text))

    def lowered():
        return jax.jit(lambda x_t, t: tuple(denoise(x_t, t)[:2])).lower(*given).as_text()

    here = lowered()
    with cpu_forms.off():
        plain = lowered()
    assert convolutions(text) in (convolutions(plain), 3 * convolutions(plain))  # of each platform its own
    assert convolutions(plain) > convolutions(here)
    assert not set(re.findall(r"custom_call @(\w+)", text)) - {"shape_assertion"}


@pytest.mark.slow
def test_in_16_bits(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(attention, "_cudnn_takes", lambda *head: asked.append(head))
    chain = processes.GaussianDiffusion(schedules.linear(20))
    run = run_of(tmp_path / "run", "unet", chain, **SMALL, attention_resolutions=(8,))
    run = replace(run, config=replace(run.config, train=replace(run.config.train, dtype="bfloat16")))
    to_stablehlo(run, tmp_path / "out.stablehlo", what="denoise")
    assert not asked
    program, about = opened(tmp_path / "out.stablehlo")
    assert "bf16" in program.mlir_module() and about["computes_in"] == "bfloat16"


@pytest.mark.parametrize("kind", ["diffusion", "flow", "edm"])
@pytest.mark.slow
def test_any_sampler(tmp_path, kind):
    chain = processes.GaussianDiffusion(schedules.linear(20))
    process = {"diffusion": chain, "flow": processes.FlowMatching(), "edm": processes.EDM()}[kind]
    run = run_of(tmp_path / "run", "mlp", process, dim=16, num_steps=2 if kind == "edm" else 1000)
    for name, sampler in samplers.SAMPLERS.items():
        if sampler().misfit(process):
            continue
        path = tmp_path / f"{name}.stablehlo"
        config = replace(run.config.sample, sampler=sampler(), clip=1.0)
        # rounding may tip the length of an adaptive step, and so move a sample by as much as the solver errs: of this network, with
        # its kinks, by 1e-3 to 4e-3 from 500 and more steps of Heun's
        allowed, fixed = 2e-6, None
        if name == "adaptive":
            allowed, fixed = 2e-3, 4
            config = replace(config, num=fixed)
        assert to_stablehlo(run, path, config) == fixed, name
        program, about = opened(path)
        numbers = np.arange(4, dtype=np.int32)
        close(np.asarray(program.call(np.int32(3), numbers)), ours(run, config, numbers), allowed)
        assert about["sample"]["sampler"] == name and about["batch"] == fixed


@pytest.mark.slow
def test_guidance_and_what_the_network_says_besides(tmp_path):
    learned = processes.GaussianDiffusion(schedules.cosine(20), loss="hybrid")
    options = SMALL | {
        "num_classes": 4,
        "learn_variance": True,
        "self_conditioning": True,
        "attention_resolutions": (4,),
    }
    run = run_of(tmp_path / "run", "unet", learned, **options)
    trained = replace(run.config.train, label_dropout=0.1)
    run = replace(run, config=replace(run.config, train=trained), class_names=("a", "b", "c"))
    config = replace(run.config.sample, guidance=2.0, threshold=0.9, guidance_to=0.8)
    labels, numbers = np.int32([0, 2, 1]), np.int32([0, 1, 5])
    to_stablehlo(run, tmp_path / "walk.stablehlo", config)
    program, about = opened(tmp_path / "walk.stablehlo")
    close(np.asarray(program.call(np.int32(3), numbers, labels)), ours(run, config, numbers, labels), 2e-5)
    assert about["null_label"] == 3
    to_stablehlo(run, tmp_path / "one.stablehlo", config, "denoise")
    program, about = opened(tmp_path / "one.stablehlo")
    rng = np.random.default_rng(0)
    x_t, guess = jnp.asarray(rng.standard_normal((2, 3, 8, 8, 1), np.float32))
    found = program.call(x_t, np.int32([19, 3, 0]), guess, labels)
    wanted = Drawing(run, config).denoiser(labels).given(guess)(x_t, jnp.array([19, 3, 0]))
    assert about["outputs"] == ["x_0", "eps", "variance_logit"] and len(found) == 3
    assert list(about["inputs"]) == ["x_t", "t", "guess", "labels"]
    for part, expected in zip(found, wanted, strict=True):
        close(np.asarray(part), expected, 2e-5)


@pytest.mark.usefixtures("without_the_checker")
def test_what_a_program_has_no_use_for(finished_run, tmp_path):
    run, path = open_run(finished_run), tmp_path / "out.stablehlo"
    sample = run.config.sample
    for config, what, message in [
        (replace(sample, sampler=samplers.Ancestral()), "denoise", "sampler belongs to what = sample"),
        (replace(sample, steps=7), "denoise", "steps belongs to what = sample.*; got 7"),
        (replace(sample, stretch=True), "sample", "stretch is done to samples that are drawn"),
        (replace(sample, num=7), "sample", "num is the size of a batch that is fixed.*; got 7"),
        (sample, "walk", "what must be one of sample, denoise; got 'walk'"),
    ]:
        with pytest.raises(UserError, match=message):
            to_stablehlo(run, path, config, what)
    with pytest.raises(UserError, match="weights must be one of ema, params; got 'state'"):
        to_stablehlo(run, path, which="state")
    assert not path.exists()


# The commands


def test_onnx_by_the_command(tmp_path, capsys):
    ort = pytest.importorskip("onnxruntime")
    run = run_of(tmp_path / "run", "mlp", processes.GaussianDiffusion(schedules.linear(20)), dim=16)
    path = tmp_path / "points.onnx"
    assert cli.main(["convert", str(run.folder), str(path), "--weights", "params"]) == 0
    said = re.fullmatch(
        r"(.*)\n  from JAX it differs by (\S+) of the largest output, in ONNX Runtime\n", capsys.readouterr().out
    )
    assert said and said[1] == str(path) and 0 < float(said[2]) < 2e-5
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x_t, t = np.random.default_rng(1).standard_normal((4, 2), np.float32), np.int64([19, 8, 1, 0])
    (found,) = session.run(None, {"x_t": x_t, "t": t})
    close(found, run.denoiser().output(jnp.asarray(x_t), t), 2e-5)


def test_who_has_weights_alone_is_told_what_to_do(finished_run, tmp_path, capsys):
    for suffix in (".onnx", ".stablehlo"):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs/config.json").write_text('{"_class_name": "UNet2DModel"}')
        theirs = refusal(capsys, "convert", tmp_path / "theirs", tmp_path / f"out{suffix}")
        assert re.search(
            rf"{suffix} is made of a run folder; \S+theirs is one of diffusers\. .* ddpm import \S+theirs --out", theirs
        )
    assert not list(tmp_path.glob("out*"))
