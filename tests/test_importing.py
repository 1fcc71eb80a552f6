"""`ddpm import` and the way back: folders, the Hub's cache, checkpoints of OpenAI, provenance, and what is refused."""

import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import models, schedules, weights
from ddpm_jax.cli import main
from ddpm_jax.conversion.openai import FILES, condition_of
from ddpm_jax.conversion.scheduler import from_scheduler, to_scheduler
from ddpm_jax.errors import UserError
from ddpm_jax.presets import DataConfig, Preset, SampleConfig
from ddpm_jax.processes import FlowMatching, GaussianDiffusion
from ddpm_jax.samplers import Ancestral
from ddpm_jax.training.objective import check
from ddpm_jax.training.run import open_run
from ddpm_jax.weights.diffusers import to_config, to_options

pytest.importorskip("safetensors")

MODEL = models.UNetConfig(
    image_size=8,
    channels=1,
    dim=8,
    dim_mults=(1,),
    num_blocks=1,
    attention_resolutions=(),
    head_dim=4,
    norm_groups=4,
)
TWO_LEVELS = models.unet_of(**vars(MODEL) | {"dim_mults": (1, 2), "attention_resolutions": (4,)})
NAMES = ("beta_schedule", "prediction_type", "timestep_spacing", "rescale_betas_zero_snr", "variance_type")
SCHEDULER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 100, "beta_end": 0.1, "clip_sample": False}
CARD = "---\nlicense: apache-2.0\ntags:\n- pytorch\n---\n# a model\n"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def random_tensors(model, seed=0):
    """The twin's state dict of a network, every number drawn."""
    rng = np.random.default_rng(seed)
    return {
        entry.key: (rng.normal(size=entry.shape) / max(np.prod(entry.shape[1:]), 1) ** 0.5).astype(np.float32)
        for entry in weights.layout(models.abstract(model))
    }


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(MODEL)


@pytest.fixture
def pipeline(tensors, tmp_path):
    """pipeline(layout): a folder as diffusers writes it; `beside`: as it wrote it at first."""

    def write(layout="inside", model=MODEL, tensors=tensors, scheduler=SCHEDULER, **changes):
        folder = tmp_path / f"pipeline {layout}"
        unet, of_scheduler = (folder / "unet", folder / "scheduler") if layout == "inside" else (folder, folder)
        unet.mkdir(parents=True)
        config, theirs = weights.to_diffusers(model, tensors)
        (unet / "config.json").write_text(json.dumps(config | changes))
        weights.write_tensors(unet / WEIGHTS, theirs, metadata={"format": "pt"})
        if layout != "alone":
            of_scheduler.mkdir(exist_ok=True)
            (of_scheduler / "scheduler_config.json").write_text(json.dumps(scheduler))
            (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDIMPipeline"}))
        (folder / "README.md").write_text(CARD)
        return folder

    return write


def imported(source, tmp_path, *options):
    assert main(["import", str(source), "--out", str(tmp_path / "run"), *options]) == 0
    return open_run(tmp_path / "run")


def refused(arguments, capsys):
    assert main(arguments) == 2
    return capsys.readouterr().err


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(run, tensors):
    found = weights.to_numpy(models.abstract(run.config.model), run.load_variables()[0])
    assert found.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(found[key], array, key, strict=True)


@pytest.mark.parametrize("layout", ["inside", "beside", "alone"])
def test_folders(pipeline, tensors, tmp_path, layout):
    folder = pipeline(layout)
    run = imported(folder, tmp_path, "--data", "digits")
    assert run.config.model == MODEL
    same(run, tensors)
    inside = "unet/" if layout == "inside" else ""
    files = [f"{inside}config.json", f"{inside}{WEIGHTS}"]
    if layout != "alone":
        files.append("scheduler/scheduler_config.json" if layout == "inside" else "scheduler_config.json")
    assert run.origin == {
        "source": str(folder),
        "library": "diffusers",
        "weights": None,
        "revision": None,
        "licence": "apache-2.0",
        "sha256": {name: sha256(folder / name) for name in files},
    }
    if layout == "alone":
        assert run.config.process == GaussianDiffusion(schedules.linear(1000))
        assert run.config.sample == SampleConfig("ancestral", spacing="leading")
    else:
        assert run.config.process == GaussianDiffusion(schedules.linear(100, beta_end=0.1))
        assert run.config.sample == SampleConfig("ddim", 50, spacing="leading", clip=None)
    assert run.config.data.source == "digits"


def test_the_unet_folder_of_a_pipeline_finds_its_scheduler(pipeline, tmp_path):
    run = imported(pipeline() / "unet", tmp_path)
    assert run.config.process.schedule.num_steps == 100
    assert set(run.origin["sha256"]) == {"unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"}


@pytest.mark.slow
def test_an_imported_run_is_a_run(pipeline, tmp_path, capsys):
    """Sampled, trained on, and written out again; the new run's origin leads to the file."""
    run = imported(pipeline(), tmp_path, "--data", "digits")
    assert main(["sample", str(run.folder), "--num", "2", "--steps", "2"]) == 0
    images = np.load(run.folder / "samples" / "samples.npz")["images"]
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8
    short = [
        "--train.steps",
        "2",
        "--train.batch-size",
        "4",
        "--train.sample-every",
        "0",
        "--sample.num",
        "1",
        "--sample.steps",
        "1",
    ]
    assert main(["finetune", str(run.folder), "--out", str(tmp_path / "tuned"), *short]) == 0
    tuned = open_run(tmp_path / "tuned")
    assert tuned.origin["run"] == str(run.folder) and tuned.origin["origin"] == run.origin
    assert main(["convert", str(tmp_path / "tuned"), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    written = weights.read_tensors(tmp_path / "out" / "unet" / WEIGHTS)
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    options, ours = weights.from_diffusers(config, written)
    assert options == tuned.config.model
    same(tuned, ours)
    assert (tmp_path / "out" / "scheduler" / "scheduler_config.json").is_file()
    assert "exists; choose another" in refused(
        ["convert", str(tmp_path / "tuned"), str(tmp_path / "out"), "--to", "diffusers"], capsys
    )


@pytest.mark.slow
def test_an_imported_run_is_verified_and_evaluated(pipeline, tmp_path):
    pytest.importorskip("torch")
    run = imported(pipeline(), tmp_path, "--data", "digits")
    assert main(["verify", str(run.folder), "--out", str(tmp_path / "verify")]) == 0
    assert main(["evaluate", str(run.folder), "--num", "20", "--steps", "2", "--num-real", "600"]) == 0


@pytest.mark.slow
def test_a_run_that_learns_its_variance_is_verified(tmp_path):
    pytest.importorskip("torch")
    model = models.unet_of(**vars(MODEL) | {"learn_variance": True})
    state = weights.to_openai(openai_model(model), random_tensors(openai_model(model)))
    path = weights.write_tensors(tmp_path / "model.safetensors", state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights.openai, "GROUPS", 4)
        imported(path, tmp_path, "--image-size", "8", "--openai.head-dim", "4", "--openai.schedule", "cosine")
    assert main(["verify", str(tmp_path / "run"), "--out", str(tmp_path / "verify")]) == 0


# The Hub, from its cache

NAME, COMMIT = "google/ddpm-tiny-8", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(pipeline, tmp_path, monkeypatch):
    """The Hub's cache with one repository, laid out as huggingface_hub does; there is no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "hub" / "models--google--ddpm-tiny-8"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    for file in pipeline("beside").iterdir():
        blob = repository / "blobs" / sha256(file)
        blob.write_bytes(file.read_bytes())
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_the_hubs_cache(cache, tensors, tmp_path, revision):
    run = imported(NAME, tmp_path, *(["--revision", revision] if revision else []))
    same(run, tensors)
    assert run.origin["source"] == NAME and run.origin["revision"] == COMMIT and run.origin["licence"] == "apache-2.0"
    assert run.origin["sha256"][WEIGHTS] == sha256(cache / WEIGHTS)


def test_without_a_network(cache, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    error = refused(["import", "google/ddpm-other", *out], capsys)
    assert "google/ddpm-other cannot be fetched" in error
    assert "hf download google/ddpm-other --local-dir FOLDER; then, here: ddpm import FOLDER" in error
    error = refused(["import", NAME, "--revision", "other", *out], capsys)
    assert f"hf download {NAME} --revision other --local-dir" in error
    assert not (tmp_path / "run").exists()


def test_a_cache_without_safetensors_or_card(cache, tensors, tmp_path, monkeypatch):
    """What an older version of another library left there, when the repository itself has more."""
    pytest.importorskip("torch")
    import huggingface_hub

    theirs = weights.read_tensors(cache / WEIGHTS)
    (cache / WEIGHTS).unlink()
    (cache / "README.md").unlink()
    weights.write_tensors(cache / "diffusion_pytorch_model.bin", theirs)

    def incomplete(name, revision, allow_patterns):
        if {"README.md", WEIGHTS} & {*allow_patterns}:
            raise OSError("the snapshot is incomplete")
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    run = imported(NAME, tmp_path)
    same(run, tensors)
    assert run.origin["licence"] is None and "diffusion_pytorch_model.bin" in run.origin["sha256"]


def test_a_repository_of_something_else(cache, tmp_path, capsys):
    (cache / WEIGHTS).unlink()
    error = refused(["import", NAME, "--out", str(tmp_path / "run")], capsys)
    assert f"{NAME} holds no weights of diffusers" in error


def test_without_huggingface_hub(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert 'pip install "ddpm-jax[hub]"' in refused(["import", NAME, "--out", str(tmp_path / "run")], capsys)


# OpenAI's checkpoints


def openai_model(model):
    """The options as their libraries have them."""
    theirs = {"norm_eps": 1e-5, "cos_first": True, "freq_shift": 0, "pad_all_sides": True}
    return models.unet_of(**vars(model) | theirs)


def test_a_checkpoint_of_openai(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights.openai, "GROUPS", 4)
    model = openai_model(models.unet_of(**vars(MODEL) | {"learn_variance": True, "num_classes": 3}))
    tensors = random_tensors(model)
    path = weights.write_tensors(tmp_path / "ema_0.9999_200.safetensors", weights.to_openai(model, tensors))
    options = ["--image-size", "8", "--openai.head-dim", "4", "--openai.num-steps", "4000"]
    run = imported(path, tmp_path, *options, "--openai.rescale-timesteps", "True")
    assert run.config.model == models.unet_of(**vars(model) | {"time_scale": 0.25})
    same(run, tensors)
    process = run.config.process
    schedule = process.schedule
    assert (schedule.name, schedule.num_steps, process.loss) == ("linear", 4000, "hybrid")
    assert (schedule.beta_start, schedule.beta_end) == pytest.approx((2.5e-5, 0.005))
    assert run.config.sample == SampleConfig(Ancestral("learned"))
    assert run.class_names == ("0", "1", "2")
    assert run.origin["library"] == "openai" and run.origin["sha256"] == {path.name: sha256(path)}
    error = refused(["import", str(path), "--out", str(tmp_path / "other")], capsys)
    assert "none of the files that OpenAI published (cifar10_uncond_50M_500K, " in error and "--image-size" in error
    error = refused(["import", str(path), "--out", str(tmp_path / "other"), "--image-size", "8"], capsys)
    assert "pass num_heads or head_dim" in error


@pytest.mark.slow
def test_a_checkpoint_without_convolutions_that_resample(tmp_path, monkeypatch, capsys):
    """conv_resample = False is read off the numbers that are left out; the run samples, and goes out and in again."""
    monkeypatch.setattr(weights.openai, "GROUPS", 4)
    model = openai_model(models.unet_of(**vars(MODEL) | {"dim_mults": (1, 2, 1), "resample": "fixed", "num_blocks": 2}))
    tensors = random_tensors(model)
    theirs = weights.to_openai(model, tensors)
    assert not any(name.startswith(("input_blocks.3.", "input_blocks.6.")) for name in theirs)
    path = weights.write_tensors(tmp_path / "model100.safetensors", theirs)
    run = imported(path, tmp_path, "--image-size", "8", "--openai.head-dim", "4")
    assert run.config.model == model
    same(run, tensors)
    assert main(["sample", str(run.folder), "--num", "1", "--steps", "1"]) == 0
    assert main(["convert", str(run.folder), str(tmp_path / "ours.npz")]) == 0
    ours = weights.read_tensors(tmp_path / "ours.npz")
    assert all((theirs[key] == array).all() for key, array in weights.to_openai(model, ours).items())
    arguments = ["convert", str(run.folder), str(tmp_path / "out"), "--to", "diffusers"]
    assert "resample without convolutions (fixed)" in refused(arguments, capsys)


def test_a_published_file_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(weights.openai, "GROUPS", 4)
    model = openai_model(
        models.UNetConfig(
            image_size=32, dim=8, dim_mults=(1, 1), num_blocks=1, num_heads=4, norm_groups=4, learn_variance=True
        )
    )
    path = tmp_path / "cifar10_uncond_50M_500K.safetensors"
    weights.write_tensors(path, weights.to_openai(model, random_tensors(model)))
    run = imported(path, tmp_path)
    assert run.config.model == models.unet_of(**vars(model) | {"dropout": 0.3, "time_scale": 0.25})
    assert run.config.process.schedule == schedules.cosine(4000)


def test_an_upsampler_of_openai(tmp_path, monkeypatch, capsys):
    """A super-resolution model is shown a small image; files of that size are what its samples are made of."""
    monkeypatch.setattr(weights.openai, "GROUPS", 4)
    model = openai_model(
        models.unet_of(**vars(MODEL) | {"channels": 3, "learn_variance": True, "condition_channels": 3})
    )
    tensors = random_tensors(model)
    path = weights.write_tensors(tmp_path / "ema_0.9999_200.safetensors", weights.to_openai(model, tensors))
    told = ["--image-size", "8", "--openai.head-dim", "4"]
    run = imported(path, tmp_path, *told, "--openai.small-size", "4")
    assert run.config.model == model and run.config.data.condition == "downsample:2"
    same(run, tensors)
    assert "shown downsample:2" in capsys.readouterr().out
    Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).save(tmp_path / "small.png")
    sampled = ["sample", str(run.folder), "--num", "2", "--steps", "2"]
    assert "no data of its own" in refused(sampled, capsys)
    assert main([*sampled, "--condition", str(tmp_path / "small.png")]) == 0
    picture = np.asarray(Image.open(run.folder / "samples" / "samples.png"))
    assert ((picture == (255, 0, 0)).all(-1)).sum() >= 64  # what was shown stands beside the samples
    other = ["import", str(path), "--out", str(tmp_path / "other"), *told]
    assert "pass --openai.small-size" in refused(other, capsys)
    for size in ("3", "8", "0"):
        assert f"must divide the image_size, 8, and be less; got {size}" in refused(
            [*other, "--openai.small-size", size], capsys
        )


@pytest.mark.parametrize(("name", "size", "factor"), [("64_256_upsampler", 256, 4), ("128_512_upsampler", 512, 4)])
def test_upsamplers_that_openai_published(name, size, factor):
    known = FILES[name]
    assert (known.image_size, known.new_attention_order, known.schedule) == (size, False, "linear")
    model = models.UNetConfig(image_size=size, condition_channels=3)
    assert condition_of(Path(f"{name}.pt"), model, None) == f"downsample:{factor}"


# What is refused


def test_pickles_with_code_are_refused(pipeline, tmp_path, capsys):
    torch = pytest.importorskip("torch")

    class Code:
        def __reduce__(self):
            return (os.system, ("true",))

    folder = pipeline("alone")
    safe = weights.read_tensors(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Code()}, folder / "diffusion_pytorch_model.bin")
    assert "would run code" in refused(["import", str(folder), "--out", str(tmp_path / "run")], capsys)
    weights.write_tensors(folder / "diffusion_pytorch_model.bin", safe)
    assert imported(folder, tmp_path).config.model == MODEL


def test_tensors_that_do_not_fit_are_listed(pipeline, tmp_path, capsys):
    folder = pipeline("alone")
    theirs = weights.read_tensors(folder / WEIGHTS)
    theirs["extra"] = theirs.pop("conv_in.bias")
    theirs["conv_out.bias"] = np.zeros(7, np.float32)
    weights.write_tensors(folder / WEIGHTS, theirs)
    error = refused(["import", str(folder), "--out", str(tmp_path / "run")], capsys)
    assert "missing: conv_in.bias (8,)" in error
    assert "not of this network: extra (8,)" in error
    assert "misshapen: conv_out.bias is (7,), must be (1,)" in error


def test_folders_that_hold_nothing(pipeline, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert "does not exist, and is no id of the Hub" in refused(["import", str(tmp_path / "nowhere"), *out], capsys)
    (tmp_path / "empty").mkdir()
    assert "is no folder of diffusers" in refused(["import", str(tmp_path / "empty"), *out], capsys)
    folder = pipeline("alone")
    assert "--revision belongs to" in refused(["import", str(folder), "--revision", "main", *out], capsys)
    (folder / WEIGHTS).unlink()
    assert f"holds no weights: {WEIGHTS} or" in refused(["import", str(folder), *out], capsys)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(["import", str(folder), *out], capsys)
    assert "exists; choose another --out" in refused(["import", str(folder), "--out", str(folder)], capsys)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "got 'UNet2DConditionModel'"),
        ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, "down_block_types with 'CrossAttnDownBlock2D'"),
        ({"up_block_types": ("SkipUpBlock2D", "UpBlock2D")}, "up_block_types with 'SkipUpBlock2D'"),
        ({"up_block_types": ("UpBlock2D",)}, "of different lengths"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type = 'UNetMidBlock2DCrossAttn'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        ({"act_fn": "tanh"}, "act_fn = 'tanh'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift = 'spatial'"),
        ({"class_embed_type": "identity"}, "class_embed_type = 'identity'"),
        ({"class_embed_type": "timestep"}, "without a number of classes"),
        ({"downsample_padding": 2}, "downsample_padding = 2"),
        ({"downsample_type": "fir"}, "downsample_type = 'fir'"),
        ({"freq_shift": 3}, "freq_shift = 3"),
        ({"out_channels": 4}, "in_channels = 1 with out_channels = 4"),
        ({"sample_size": (8, 16)}, "images must be square"),
        ({"encoder_hid_dim": 7}, "encoder_hid_dim = 7"),
        ({"sample_size": None}, "pass image_size"),
        ({"attention_head_dim": 3}, "head_dim = 3 must divide"),
        ({"act_fn": ["silu"]}, "act_fn = ['silu']"),
    ],
)
def test_networks_without_a_counterpart(changes, named):
    with pytest.raises(UserError) as error:
        to_options(to_config(TWO_LEVELS) | changes)
    assert named in str(error.value)
    if "counterpart" in str(error.value) or "_class_name" in str(error.value):
        assert "Supported are UNet2DModels of the blocks DownBlock2D, AttnDownBlock2D" in str(error.value)


def test_a_config_of_the_wrong_types(tensors):
    with pytest.raises(UserError, match=r"this is no config\.json of a UNet2DModel"):
        weights.from_diffusers(to_config(MODEL) | {"block_out_channels": None}, tensors)


def test_every_reason_is_named_at_once():
    with pytest.raises(UserError, match="act_fn = 'tanh', freq_shift = 3") as error:
        to_options(to_config(MODEL) | {"act_fn": "tanh", "freq_shift": 3})
    assert "AttnUpBlock2D" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_class_name": "PNDMScheduler"}, "the scheduler is a PNDMScheduler"),
        ({"beta_schedule": "laplace"}, "beta_schedule = 'laplace'"),
        ({"trained_betas": [0.1]}, "trained_betas = [0.1]"),
        ({"thresholding": True}, "thresholding = True"),
        ({"steps_offset": 1}, "steps_offset = 1"),
        ({"set_alpha_to_one": False}, "set_alpha_to_one = False"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing = 'linspace'"),
        ({"timestep_spacing": "even"}, "timestep_spacing = 'even'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True with prediction_type = 'epsilon' (the noise"),
        ({"prediction_type": "flow"}, "prediction_type = 'flow'"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type = 'learned'"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "with as many channels out as in"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}, "variance_type = 'fixed_large_log'"),
    ],
)
def test_schedulers_without_a_counterpart(changes, named):
    with pytest.raises(UserError) as error:
        from_scheduler(SCHEDULER | changes, MODEL)
    assert named in str(error.value) and "Supported are DDPMScheduler and DDIMScheduler" in str(error.value)


LEARNED = models.unet_of(**vars(MODEL) | {"learn_variance": True})
MADE = [
    ({"_class_name": kind, "num_train_timesteps": 40, "beta_end": 0.1, **dict(zip(NAMES, options, strict=True))}, model)
    for kind, variances in (
        ("DDIMScheduler", [None]),
        ("DDPMScheduler", ["fixed_small", "fixed_large", "learned_range"]),
    )
    for model in (MODEL, LEARNED)
    for options in itertools.product(
        ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
        ("epsilon", "sample", "v_prediction"),
        ("leading", "linspace", "trailing"),
        (False, True),
        variances,
    )
]


def test_what_is_imported_can_be_sampled():
    """Every combination of a scheduler's options is refused, or walks times at which its estimates are finite."""
    taken, refused_ones = 0, 0
    for config, model in MADE:
        try:
            process, sample = from_scheduler({k: v for k, v in config.items() if v is not None}, model)
        except UserError:
            refused_ones += 1
            continue
        made = Preset(model=model, process=process, sample=sample)
        check(made)
        of = made.process
        grids = [sample.sampler.grid(of, steps, sample.spacing) for steps in range(1, 41)]
        times = jnp.asarray(np.unique(np.concatenate(grids)[:, 0]))
        outputs = jnp.ones((len(times), 2 if model.learn_variance else 1))
        hat = of.estimate(outputs[:, :1], outputs, times)
        assert np.isfinite(hat.x_0).all() and np.isfinite(hat.eps).all(), config
        taken += 1
    assert taken and refused_ones and taken + refused_ones == len(MADE)
    # eps at a zero terminal SNR is refused, whatever the spacing: so is linspace of DDIM, and a variance of another network
    by_kind = {"DDIMScheduler": 2 * 4 * 5 * 2, "DDPMScheduler": (2 + 1) * 4 * 5 * 3}
    assert taken == sum(by_kind.values())


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"_class_name": "DDPMScheduler", "timestep_spacing": "linspace"},
    ],
)
def test_what_is_imported_is_sampled(pipeline, tmp_path, options):
    run = imported(pipeline(scheduler=SCHEDULER | options), tmp_path)
    assert main(["sample", str(run.folder), "--num", "1", "--steps", "2"]) == 0


def test_a_scheduler_that_could_not_be_walked_makes_no_run(pipeline, tmp_path, capsys):
    """x_T holds no data, by what it is called or by its betas: both imports are refused."""
    for number, (options, named) in enumerate(
        (
            ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True with prediction_type = 'epsilon'"),
            ({"beta_end": 1.0}, "prediction = eps says nothing where x_t holds no data"),
        )
    ):
        folder = pipeline(f"number {number}", scheduler=SCHEDULER | options)
        assert named in refused(["import", str(folder), "--out", str(tmp_path / "run")], capsys)
        assert not (tmp_path / "run").exists()


def test_a_scheduler_can_be_left_out(pipeline, tmp_path):
    run = imported(pipeline(scheduler={"_class_name": "PNDMScheduler"}), tmp_path, "--no-scheduler")
    assert run.config.process == GaussianDiffusion(schedules.linear(1000))


def test_old_schedulers():
    config = {"_class_name": "DDPMScheduler", "predict_epsilon": False, "tensor_format": "pt", "timestep_values": None}
    process, sample = from_scheduler(config, MODEL)
    assert process.prediction == "x0" and sample.sampler == Ancestral("posterior") and sample.steps is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"self_conditioning": True}, "self_conditioning"),
        ({"time_scale": 0.5}, "time_scale = 0.5"),
        ({"dim_mults": (2, 2)}, "dim = 8 with a first level of width 16"),
        ({"head_dim": None, "num_heads": 2, "attention_resolutions": (8, 4)}, r"num_heads = 2 at the widths [8, 16]"),
        ({"middle_norm_groups": 0}, "middle_norm_groups = 0 with time_conditioning = add"),
        (
            {"dim_mults": (1, 1, 1), "attention_resolutions": (8, 4), "halving": ("conv", "residual")},
            "resample differently on the way down",
        ),
        ({"resample": "fixed"}, "levels that resample without convolutions (fixed) on the way down"),
    ],
)
def test_networks_that_cannot_be_written(options, named):
    with pytest.raises(UserError) as error:
        to_config(models.unet_of(**vars(TWO_LEVELS) | options))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("process", FlowMatching(), "process.kind = flow"),
        (
            "process",
            GaussianDiffusion(schedules.linear_inclusive(1000)),
            "process.schedule = linear_inclusive of a DDPMScheduler",
        ),
        ("data", DataConfig(scale="unit"), "data.scale = unit"),
        ("sample", SampleConfig(threshold=0.9), "sample.threshold = 0.9"),
    ],
)
def test_processes_that_cannot_be_written(part, value, named):
    parts = {"sample": SampleConfig(clip=None)} if part == "data" else {}
    with pytest.raises(UserError) as error:
        to_scheduler(Preset(model=MODEL, **parts | {part: value}))
    assert named in str(error.value)


@pytest.mark.parametrize(("num_steps", "steps"), [(30, None), (1000, None), (4000, 1000)])
def test_a_pipelines_own_number_of_steps(num_steps, steps):
    """DDPMPipeline takes 1,000 of a longer chain, too."""
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": num_steps}
    assert from_scheduler(config, MODEL)[1].steps == steps


@pytest.mark.filterwarnings("ignore:the pipeline samples in another way")
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    "sample", [SampleConfig("ddim", 50, spacing="leading", clip=2.0), SampleConfig("ancestral", clip=None)]
)
def test_schedulers_round_trip(learned, prediction, sample):
    model = models.unet_of(**vars(MODEL) | {"learn_variance": learned})
    process = GaussianDiffusion(schedules.quadratic(100, beta_end=0.1), prediction, "hybrid" if learned else "mse")
    config = to_scheduler(Preset(model=model, process=process, sample=sample))
    again, sample_again = from_scheduler(config, model)
    assert again == process
    assert config == to_scheduler(Preset(model=model, process=again, sample=sample_again))


def test_other_networks_have_no_counterpart(finished_run, tmp_path, capsys):
    arguments = ["convert", str(finished_run), str(tmp_path / "out"), "--to", "diffusers", "--weights", "state"]
    assert "it would be the state of training" in refused(arguments, capsys)
