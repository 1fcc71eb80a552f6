"""`UNet2DModel` of the library itself: its networks, its pipelines and its files, in and out.

Difference of definition: it computes the sinusoids of t in float32 whatever the network's dtype. For float64 they are computed in
float64 here (`double_sinusoids`); the float32 comparisons see its own.
"""

import dataclasses
import inspect
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.numpy import save
from tolerances import assert_close, relative_error
from twins import compiled, forward_and_back, indices, normal, randomise, to_nchw, to_nhwc

from ddpm_jax import models, samplers, schedules, weights
from ddpm_jax.cli import main
from ddpm_jax.conversion.scheduler import DEFAULTS as SCHEDULER_DEFAULTS
from ddpm_jax.training.run import open_run
from ddpm_jax.training.samples import believed
from ddpm_jax.weights.diffusers import DEFAULTS, to_options
from ddpm_torch_ref import models as twin_models

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
HO = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "attention_head_dim": None}
"""What the checkpoints of Ho et al. 2020 have in common, whatever the size."""
AT_256 = HO | {
    "sample_size": 64,  # their six levels at a quarter of 256 pixels
    "block_out_channels": (8, 8, 16, 16, 32, 32),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    "norm_num_groups": 4,
}
CONFIGS = {
    "tiny": TINY,
    "cifar10 at an eighth of its width": HO
    | {
        "sample_size": 32,
        "block_out_channels": (16, 32, 32, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    },
    "lsun at a sixteenth of its width": AT_256,
    "celebahq, one block a level": AT_256 | {"layers_per_block": 1, "act_fn": "swish"},
    "the library's defaults at a fourteenth": {
        "sample_size": 16,
        "block_out_channels": (16, 32, 48, 64),
        "norm_num_groups": 4,
    },
    "all of scale_shift": TINY
    | {
        "resnet_time_scale_shift": "scale_shift",
        "mid_block_scale_factor": 1.5,
        "center_input_sample": True,
        "act_fn": "mish",
        "class_embed_type": "timestep",
        "time_embedding_dim": 24,
        "dropout": 0.1,
    },
    "residual blocks that resample": TINY
    | {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D"),
        "act_fn": "gelu",
        "num_class_embeds": 5,
    },
    "resampling that differs": TINY
    | {
        "block_out_channels": (8, 12, 8),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "attention_head_dim": 8,
        "add_attention": False,
        "out_channels": 6,
    },
    "attention on one way alone": TINY
    | {"up_block_types": ("UpBlock2D", "AttnUpBlock2D"), "upsample_type": "resnet", "act_fn": "relu"},
    "no middle": TINY | {"mid_block_type": None, "norm_eps": 1e-3, "in_channels": 1, "out_channels": 1},
    "norms of the middle": TINY
    | {"attn_norm_num_groups": 8, "resnet_time_scale_shift": "scale_shift", "freq_shift": 1, "downsample_padding": 0},
    "one level": TINY
    | {
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",),
        "attn_norm_num_groups": 2,
        "layers_per_block": 2,
    },
}
NUM_CLASSES = 5
QUICK = {"all of scale_shift", "resampling that differs"}
QUICK_IN_FLOAT32: set[str] = set()
"""Ours; the others are slow. The twin is held to the library in all of them."""


def double_sinusoids(t, width, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10_000):
    """The library's sinusoids, in float64."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half).double() / (half - downscale_freq_shift))
    angles = scale * t[:, None].double() * frequencies
    halves = [angles.sin(), angles.cos()]
    return torch.cat(halves[::-1] if flip_sin_to_cos else halves, dim=1)


@pytest.fixture
def exactly(monkeypatch):
    """exactly(dtype): from here on the library computes its sinusoids in float64, if that is the dtype."""

    def exactly(dtype):
        if dtype == "float64":
            monkeypatch.setattr("diffusers.models.embeddings.get_timestep_embedding", double_sinusoids)

    return exactly


def library(name, dtype="float64", seed=0):
    """A network of the library with random weights, and what is to be told beside its config."""
    theirs = UNet2DModel(**CONFIGS[name])
    randomise(theirs, seed)
    by_sinusoids = CONFIGS[name].get("class_embed_type") == "timestep"
    return theirs.to(getattr(torch, dtype)).eval(), {"num_classes": NUM_CLASSES if by_sinusoids else None}


def twin_of(config, tensors, dtype):
    twin = twin_models.create(config.network, **dataclasses.asdict(config)).to(getattr(torch, dtype)).eval()
    twin.load_state_dict({key: torch.from_numpy(array) for key, array in tensors.items()})
    return twin


def inputs(config, dtype):
    x = normal(dtype, 2, config.image_size, config.image_size, config.channels)
    labels = indices([NUM_CLASSES - 1, 0]) if config.num_classes else (None, None)
    outs = config.channels * (2 if config.learn_variance else 1)
    return x, indices([3, 971]), labels, normal(dtype, *x.shape[:3], outs, seed=1)


def same_gradients(ours, theirs, told, name):
    """By the twin's names, where queries, keys and values are one: the gradient of a key's bias alone is rounding."""
    grads = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    _, wanted = weights.from_diffusers(theirs.config, grads, **told)
    assert ours.keys() == wanted.keys()
    for key, grad in wanted.items():
        assert grad.any(), f"{key} plays no part: this comparison says nothing of it"
        assert_close("gradient", ours[key], grad, f"{name}: {key}")


def test_defaults_are_the_librarys():
    for kind, ours in (
        (UNet2DModel, DEFAULTS),
        *((k, SCHEDULER_DEFAULTS[k.__name__]) for k in (DDPMScheduler, DDIMScheduler)),
    ):
        theirs = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items() if name != "self"}
        assert theirs == ours, kind


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_twin(name, dtype, exactly):
    exactly(dtype)
    theirs, told = library(name, dtype)
    config, tensors = weights.from_diffusers(theirs.config, theirs.state_dict(), **told)
    twin = twin_of(config, tensors, dtype)
    x, (_, t), (_, labels), pull = inputs(config, dtype)
    sides = {}
    for side, network in (("library", lambda x: theirs(x, t, labels).sample), ("twin", lambda x: twin(x, t, labels))):
        tx = to_nchw(x).requires_grad_()
        output = network(tx)
        output.backward(to_nchw(pull))
        sides[side] = output, tx.grad
    assert_close("output", sides["twin"][0], sides["library"][0], name)
    assert_close("gradient", sides["twin"][1], sides["library"][1], name)
    grads = {key: p.grad for key, p in twin.named_parameters()}
    same_gradients(grads, theirs, told, name)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        pytest.param(dtype, name, marks=() if name in quick else pytest.mark.slow)
        for dtype, quick in (("float64", QUICK), ("float32", QUICK_IN_FLOAT32))
        for name in CONFIGS
    ],
    indirect=["dtype"],
)
def test_outputs_and_gradients(name, dtype, exactly):
    exactly(dtype)
    theirs, told = library(name, dtype)
    config, tensors = weights.from_diffusers(theirs.config, theirs.state_dict(), **told)
    x, (t, tt), (labels, tlabels), pull = inputs(config, dtype)
    model = models.abstract(config)
    weights.load_torch(model, tensors)

    output, grads, x_grad = forward_and_back(model, x, t, labels, pull)
    tx = to_nchw(x).requires_grad_()
    wanted = theirs(tx, tt, tlabels).sample
    wanted.backward(to_nchw(pull))
    assert_close("output", output, to_nhwc(wanted), name)
    assert_close("gradient", x_grad, to_nhwc(tx.grad), f"{name}: x_t")
    same_gradients(weights.to_numpy(model, {"params": grads}), theirs, told, name)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trips(name):
    """In, out and in again: the same options, and the same bytes of a file."""
    theirs, told = library(name, "float32")
    state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    options, tensors = weights.from_diffusers(theirs.config, state, **told)
    config, back = weights.to_diffusers(options, tensors)
    assert save(back) == save(state)
    again, tensors_again = weights.from_diffusers(json.loads(json.dumps(config)), back)
    assert again == options and save(tensors_again) == save(tensors)
    # what was written out is the same network to the library
    x, (_, t), (_, labels), _ = inputs(options, "float32")
    rebuilt = UNet2DModel.from_config(config).eval()
    rebuilt.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(to_nchw(x), t, labels).sample, theirs(to_nchw(x), t, labels).sample)


def test_former_names_of_attention():
    theirs, _ = library("tiny", "float32")
    state = theirs.state_dict()
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(state)
    for now, then in former.items():
        old = {key.replace(f".{now}.", f".{then}."): tensor for key, tensor in old.items()}
    assert old.keys() != state.keys()
    ours, theirs_now = (weights.from_diffusers(theirs.config, tensors)[1] for tensors in (old, state))
    assert save(ours) == save(theirs_now)


# Pipelines, through their folders and the commands


@pytest.fixture
def walk(monkeypatch):
    """walk(pipeline, x_T, noises, **options): the states of a pipeline in double precision, from given draws."""

    def walk(pipeline, schedule, x_T, noises=(), **options):
        fresh = iter([to_nchw(x_T), *map(to_nchw, noises)])
        for module in ("pipelines.ddpm.pipeline_ddpm", "pipelines.ddim.pipeline_ddim", "schedulers.scheduling_ddpm"):
            monkeypatch.setattr(f"diffusers.{module}.randn_tensor", lambda shape, **_: next(fresh)[:, : shape[1]])
        pipeline.unet.double()
        pipeline.set_progress_bar_config(disable=True)
        scheduler = pipeline.scheduler
        # its tables are float32: they agree with ours to that, and are ours from here on
        assert relative_error(scheduler.alphas_cumprod.numpy(), schedule.alphas_cumprod) < 5e-6
        scheduler.betas = torch.tensor(schedule.betas)
        scheduler.alphas_cumprod = torch.tensor(schedule.alphas_cumprod)
        scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
        states, step = [], scheduler.step

        def recorded(*args, **kwargs):
            outcome = step(*args, **kwargs)
            states.append(to_nhwc(outcome.prev_sample))
            return outcome

        scheduler.step = recorded
        pipeline(batch_size=len(x_T), output_type="pt", **options)
        return np.stack(states)

    return walk


def run_in_double(folder, x_T, noises=None):
    """The states of a run folder's walk, as its config samples, in double precision."""
    run = open_run(folder)
    variables = jax.tree.map(lambda a: a.astype("float64"), run.load_variables()[0])
    config, sampler = run.config.sample, run.config.sample.sampler
    grid = sampler.grid(run.process, config.steps, config.spacing)

    @compiled
    def walk(denoise, x_T):
        noise = (lambda i: jnp.zeros_like(x_T)) if noises is None else (lambda i: jnp.asarray(noises)[i])
        return samplers.walk(denoise, sampler, x_T, noise, grid, len(grid) + 1).frames

    denoise = believed(run.denoiser(variables=variables), config)
    return np.asarray(walk(denoise, jnp.asarray(x_T)))[1:], run.process.schedule


def small_weights(model):
    """Outputs of about half the size of the noise, so that images neither vanish nor overflow."""
    randomise(model)
    with torch.no_grad():
        model.conv_out.weight *= 0.3


PIPELINES = {
    "ddim": (DDIMPipeline, DDIMScheduler, {"clip_sample": False}, {}),
    "ddim, clipped": (DDIMPipeline, DDIMScheduler, {}, {"use_clipped_model_output": True}),
    "ddim, v, trailing": (
        DDIMPipeline,
        DDIMScheduler,
        {
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "beta_schedule": "scaled_linear",
            "rescale_betas_zero_snr": True,
            "clip_sample": False,
        },
        {},
    ),
    "ddim, x0, cosine": (
        DDIMPipeline,
        DDIMScheduler,
        {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 2.0},
        {"use_clipped_model_output": True},
    ),
    "ddpm, learned": (DDPMPipeline, DDPMScheduler, {"variance_type": "learned_range"}, {}),
    "ddpm, large, sigmoid": (
        DDPMPipeline,
        DDPMScheduler,
        {"variance_type": "fixed_large", "beta_schedule": "sigmoid", "beta_end": 0.1},
        {},
    ),
    "ddpm, small": (DDPMPipeline, DDPMScheduler, {"clip_sample": False}, {}),
}
DDPM_STEPS = 50
"""T of the chains that are walked whole."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "ddim" else pytest.mark.slow) for name in PIPELINES],
)
def test_pipelines(name, walk, exactly, tmp_path, capsys):
    """The same starting noise gives the same image, and every state before it; our folder is theirs, byte by byte."""
    exactly("float64")
    pipeline, scheduler, options, call = PIPELINES[name]
    whole = pipeline is DDPMPipeline
    learned = options.get("variance_type") == "learned_range"
    network = UNet2DModel(**TINY | {"out_channels": 6 if learned else 3})
    small_weights(network)
    made = scheduler(num_train_timesteps=DDPM_STEPS if whole else 1000, **options)
    pipeline(network, made).save_pretrained(tmp_path / "theirs")
    assert main(["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "run")]) == 0
    x_T, noises = normal("float64", 2, 8, 8, 3), normal("float64", DDPM_STEPS, 2, 8, 8, 6, seed=1)
    ours, schedule = run_in_double(tmp_path / "run", x_T, noises[..., :3] if whole else None)

    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "ours"), "--to", "diffusers"]) == 0
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    loaded = pipeline.from_pretrained(tmp_path / "ours")
    assert type(loaded.scheduler) is scheduler
    assert {k: v for k, v in loaded.scheduler.config.items() if k[0] != "_"} == {
        k: v for k, v in made.config.items() if k[0] != "_"
    }
    steps = DDPM_STEPS if whole else 50
    theirs = walk(loaded, schedule, x_T, noises, num_inference_steps=steps, **call)
    assert len(ours) == len(theirs) == steps
    assert max(map(relative_error, ours, theirs)) < 1e-8
    capsys.readouterr()


@pytest.mark.parametrize("beta_end", [0.01, 0.2])
def test_schedules_with_other_ends(beta_end):
    for ours, theirs in (("linear", "linear"), ("quadratic", "scaled_linear"), ("sigmoid", "sigmoid")):
        table = schedules.create(ours, 100, beta_start=1e-3, beta_end=beta_end)
        scheduler = DDPMScheduler(num_train_timesteps=100, beta_start=1e-3, beta_end=beta_end, beta_schedule=theirs)
        assert relative_error(scheduler.betas.numpy(), table.betas) < 5e-6


def test_published_config_is_the_default_network():
    """google/ddpm-cifar10-32 is what `unet` is without options."""
    config = {
        "_class_name": "UNet2DModel",
        **CONFIGS["cifar10 at an eighth of its width"],
        "block_out_channels": [128, 256, 256, 256],
        "norm_num_groups": 32,
        "act_fn": "silu",
    }
    assert to_options(config) == models.UNetConfig()
