"""`ddpm import` of files of denoising-diffusion-pytorch: a Trainer's, a GaussianDiffusion's, a Unet's; and what is refused."""

import numpy as np
import pytest
from test_importing import random_tensors, refused, sha256

from ddpm_jax import models, schedules, weights
from ddpm_jax.cli import main
from ddpm_jax.conversion.denoising_diffusion import from_file
from ddpm_jax.errors import UserError
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.samplers import Ancestral
from ddpm_jax.training.run import open_run

torch = pytest.importorskip("torch")

MODEL = models.RMSUNetConfig(channels=1, image_size=8, dim=8, dim_mults=(1, 2), num_heads=2, head_dim=4)
PREDICTIONS = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}


def unet(model=MODEL, seed=0):
    return weights.to_denoising_diffusion(model, random_tensors(model, seed))


def diffusion(state, schedule="sigmoid_cumprod", num_steps=50, objective="pred_v", gamma=None, prefix="", **options):
    """The state dict of a GaussianDiffusion, its tables among it."""
    table = schedules.create(schedule, num_steps, **options)
    of_x_0 = table.snr if gamma is None else np.minimum(table.snr, gamma)
    weight = of_x_0 / {"pred_noise": table.snr, "pred_x0": 1, "pred_v": table.snr + 1}[objective]
    tables = {"betas": table.betas, "alphas_cumprod": table.alphas_cumprod, "loss_weight": weight}
    arrays = {key: array.astype(np.float32) for key, array in tables.items()}
    return {prefix + key: array for key, array in ({f"model.{key}": a for key, a in state.items()} | arrays).items()}


def tensors_of(arrays):
    return {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A file as Trainer.save writes it: whether of plain tensors or not, everything is nested."""
    trained, averaged = unet(seed=1), unet(seed=2)
    path = tmp_path_factory.mktemp("results") / "model-10.pt"
    moments = {"step": torch.tensor(5.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    ema = diffusion(trained, prefix="online_model.") | diffusion(averaged, prefix="ema_model.")
    state = {
        "step": 10_000,
        "model": tensors_of(diffusion(trained)),
        "opt": {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99), "params": [0]}]},
        "ema": tensors_of(ema) | {"initted": torch.tensor(True), "step": torch.tensor(10_000)},
        "scaler": None,
        "version": "2.3.4",
    }
    torch.save(state, path)
    return path


def same(run, seed):
    found = weights.to_numpy(models.abstract(MODEL), run.load_variables()[0])
    for key, array in random_tensors(MODEL, seed).items():
        np.testing.assert_array_equal(found[key], array, key, strict=True)


def test_the_file_of_a_trainer_becomes_a_run(trainer, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["import", str(trainer), "--out", str(folder), "--image-size", "8", "--data", "digits"]) == 0
    run = open_run(folder)
    assert run.config.model == MODEL
    assert run.config.process == GaussianDiffusion(schedules.sigmoid_cumprod(50), "v", weighting="snr")
    assert run.config.sample == SampleConfig(Ancestral("posterior"))
    assert run.origin["library"] == "denoising-diffusion-pytorch"
    assert run.origin["sha256"] == {"model-10.pt": sha256(trainer)}
    same(run, 2)
    assert main(["sample", str(folder), "--num", "2", "--sampler", "ddim", "--steps", "2"]) == 0
    images = np.load(folder / "samples" / "samples.npz")["images"]
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8


def test_the_weights_being_trained(trainer, tmp_path):
    folder = tmp_path / "run"
    options = ["--image-size", "8", "--weights", "params", "--ddp.dropout", "0.1"]
    assert main(["import", str(trainer), "--out", str(folder), *options]) == 0
    assert open_run(folder).config.model.dropout == 0.1
    same(open_run(folder), 1)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        models.RMSUNetConfig(
            channels=3, image_size=8, dim=8, dim_mults=(2,), self_conditioning=True, full_attention=(False,)
        ),
        models.RMSUNetConfig(channels=1, image_size=8, dim=4, dim_mults=(1, 3), init_dim=6, learn_variance=True),
        models.RMSUNetConfig(channels=1, image_size=8, dim=4, self_conditioning=True, learn_variance=True),
    ],
)
def test_what_the_shapes_say(model, tmp_path):
    """A Unet saved alone is taken for one that was trained as the library does unless told otherwise."""
    found, tensors, process, sample = from_file(tmp_path / "a.pt", unet(model), image_size=8)
    assert found == model
    expected = random_tensors(model)
    assert tensors.keys() == expected.keys() and all((tensors[key] == expected[key]).all() for key in expected)
    if model.learn_variance:
        assert process == GaussianDiffusion(schedules.sigmoid_cumprod(1000), loss="hybrid")
        assert sample.sampler.variance == "learned"
    else:
        assert process == GaussianDiffusion(schedules.sigmoid_cumprod(1000), "v", weighting="snr")
        assert sample.sampler.variance == "posterior"


@pytest.mark.parametrize("objective", PREDICTIONS)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_objective_is_read_off_the_weights_of_the_loss(objective, gamma, tmp_path):
    state = diffusion(unet(), objective=objective, gamma=gamma)
    process = from_file(tmp_path / "a.pt", state, image_size=8)[2]
    assert process.prediction == PREDICTIONS[objective]
    assert process.weighting == ("min_snr" if gamma else "none" if objective == "pred_noise" else "snr")
    if gamma:
        assert process.min_snr_gamma == 5


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules(schedule, tmp_path):
    ends = {"beta_start": 0.1 / 40, "beta_end": 20 / 40} if schedule == "linear" else {}
    state = diffusion(unet(), schedule, 40, "pred_noise", **ends)
    process = from_file(tmp_path / "a.pt", state, image_size=8)[2]
    assert process == GaussianDiffusion(schedules.create(schedule, 40, **ends))


def test_refusals(tmp_path):
    plain, full = unet(), diffusion(unet())
    without = {key: array for key, array in full.items() if key != "loss_weight"}
    cases = {
        "pass --image-size": (plain, {"image_size": None}),
        "pass --ddp.objective, one of pred_noise": (without, {}),
        "--ddp.objective pred_x0: the weights of the loss in a.pt are those of pred_v": (
            full,
            {"objective": "pred_x0"},
        ),
        "are none of the schedules sigmoid, cosine, linear": (diffusion(plain, "sigmoid"), {}),
        "loss_weight is that of no objective": (full | {"loss_weight": np.linspace(1, 2, 50)}, {}),
        "a KarrasUnet": ({"to_time_emb.0.weights": np.zeros(4)}, {}),
        "a Unet with learned_sinusoidal_cond": (plain | {"time_mlp.0.weights": np.zeros(8)}, {}),
        "classifier_free_guidance": (plain | {"null_classes_emb": np.zeros(8)}, {}),
        "an older version": (plain | {"downs.0.0.block1.norm.weight": np.zeros(8)}, {}),
        "init_conv.weight has 3 axes": (plain | {"init_conv.weight": np.zeros((8, 1, 7))}, {}),
        "missing: mid_attn.to_out.bias": ({k: a for k, a in plain.items() if k != "mid_attn.to_out.bias"}, {}),
        "not of this network: extra": (plain | {"extra": np.zeros(3)}, {}),
        "image_size must be divisible by 2; got 9": (plain, {"image_size": 9}),
        "1 channels in and 5 out": (plain | {"final_conv.weight": np.zeros((5, 8, 1, 1))}, {}),
    }
    for message, (state, options) in cases.items():
        with pytest.raises(UserError, match=message):
            from_file(tmp_path / "a.pt", state, **{"image_size": 8} | options)


def test_no_code_is_run(tmp_path, capsys):
    path = tmp_path / "model-1.pt"
    torch.save({"model": tensors_of(unet()), "ema": tensors_of(unet()), "scaler": sha256}, path)
    error = refused(["import", str(path), "--out", str(tmp_path / "run"), "--image-size", "8"], capsys)
    assert "is refused: it holds more than plain tensors" in error
