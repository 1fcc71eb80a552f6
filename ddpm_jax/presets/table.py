"""The table of named presets: how the authors trained each network, and recipes of our own, with what to expect of them."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ddpm_jax
from ddpm_jax import display
from ddpm_jax.errors import UserError, meant
from ddpm_jax.presets.configs import DataConfig, Preset, SampleConfig, TrainConfig


# fmt: off
def _systems() -> dict[str, tuple[Any, SampleConfig]]:
    learns, at, by = ddpm_jax.processes.GaussianDiffusion, ddpm_jax.schedules, ddpm_jax.samplers
    whole, bounds = by.Ancestral(), by.Ancestral(variance="posterior")
    return {
        "unet":                     (learns(at.linear(1000)),              SampleConfig(whole)),
        "convnext_unet":            (learns(at.cosine_unclipped(500)),     SampleConfig(by.Strided(0.1), 35, clip=None, num=81)),
        "convnext_unet_224":        (learns(at.cosine_unclipped(500)),     SampleConfig(by.Strided(0.1), 35, clip=None, num=16)),
        "tiny_unet":                (learns(at.linear(1000)),              SampleConfig(whole, clip=None, stretch=True)),
        "double_conv_unet":         (learns(at.linear(1000)),              SampleConfig(whole, clip=None)),
        "annotated_unet":           (learns(at.linear(200), loss="huber"), SampleConfig(bounds, clip=None)),
        "rms_unet":                 (learns(at.sigmoid_cumprod(1000), "v", weighting="snr"), SampleConfig(bounds)),
        "dit":                      (learns(at.linear(1000)),              SampleConfig(whole)),
        "mlp":                      (learns(at.linear(1000)),              SampleConfig(whole, clip=None, num=1200)),
        "conv_net":                 (learns(at.linear_inclusive(400)),     SampleConfig(whole, clip=None)),
        "strided_unet":             (learns(at.linear_inclusive(400)),     SampleConfig(whole, clip=None)),
        "strided_unet_conditional": (learns(at.linear_inclusive(400)),     SampleConfig(whole, clip=None, num=10)),
    }


SYSTEMS = ("unet", "convnext_unet", "convnext_unet_224", "tiny_unet", "double_conv_unet", "annotated_unet", "rms_unet", "edm_unet",
           "dit", "mlp", "conv_net", "strided_unet", "strided_unet_conditional")
"""The networks that stand for themselves; `foreign_unet` is what others' checkpoints make of `unet`."""


def system_of(model: Any) -> tuple[Any, SampleConfig]:
    """How a network is trained and sampled by its author: a process and a SampleConfig; without an author, as Ho et al. did.

    model: its options, one of `models.NETWORKS`: those that look times up in a table say how many there are.
    """
    systems = _systems()
    process, sample = systems.get(model.network, systems["unet"])
    if hasattr(model, "num_steps"):
        process = dataclasses.replace(process, schedule=dataclasses.replace(process.schedule, num_steps=model.num_steps))
    if getattr(model, "learn_variance", False):
        process = dataclasses.replace(process, loss="hybrid", learned_variance=True, weighting="none")
    return process, sample


@dataclass(frozen=True)
class Recipe:
    """A named preset, and what to expect of it."""

    about: str
    """The data and the setting."""
    expect: str
    """How long it takes and what comes of it, as measured: see docs/results.md."""
    make: Callable[[], Preset]
    """Makes the preset; only then is jax imported, for the options of its network."""

    @functools.cached_property
    def config(self) -> Preset:
        """What `ddpm train` starts from."""
        return self.make()

    def __repr__(self) -> str:
        return display.line(self, repr(self.about))


def _system(network: str, about: str, expect: str, data: DataConfig, train: TrainConfig) -> Recipe:
    def make() -> Preset:
        model = ddpm_jax.models.configure(network, {})
        process, sample = system_of(model)
        return Preset(data, model, process, train, sample)

    return Recipe(about, expect, make)


def _adam(lr: float, batch_size: int, **options: Any) -> TrainConfig:
    """What the systems' authors have in common: Adam on gradients as they are. The average is ours."""
    defaults: dict[str, Any] = {"grad_clip": None, "ema_decay": 0.999, "log_every": 50, "checkpoint_every": 500, "sample_every": 0}
    if "epochs" in options:
        defaults["steps"] = None
    return TrainConfig(lr=lr, batch_size=batch_size, **defaults | options)


def _diffusion(schedule: str, **options: Any) -> Any:
    return ddpm_jax.processes.GaussianDiffusion(ddpm_jax.schedules.create(schedule, 1000), **options)


def _small_unet(**options: Any) -> Any:
    """A U-Net for digits of 8x8 pixels."""
    return ddpm_jax.models.UNetConfig(image_size=8, channels=1, dim=32, dim_mults=(1, 2), num_blocks=1,
                                      attention_resolutions=(4,), norm_groups=8, **options)


def _minute(**options: Any) -> TrainConfig:
    """What the small U-Net is trained by in about a minute."""
    defaults: dict[str, Any] = {"steps": 800, "batch_size": 64, "lr": 2e-3, "warmup_steps": 50, "lr_decay": "cosine",
                                "ema_decay": 0.995, "log_every": 20, "sample_every": 400, "checkpoint_every": 400}
    return TrainConfig(**defaults | options)


RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        "1,797 handwritten 8x8 digits by class.",
        "A minute on two CPU cores. 97 % of the samples are recognised.",
        lambda: Preset(
            data    = DataConfig("digits"),
            model   = _small_unet(),
            process = _diffusion("cosine", prediction="v"),
            train   = _minute(),
            sample  = SampleConfig("ddim", steps=50, num=100),
        ),
    ),
    "digits-flow": Recipe(
        "The digits by flow matching: a straight path, its velocity learned, Heun's method.",
        "Trains as long as digits.",
        lambda: Preset(
            data    = DataConfig("digits"),
            model   = _small_unet(),
            process = ddpm_jax.processes.FlowMatching(),
            train   = _minute(),
            sample  = SampleConfig("heun", steps=25, clip=None, num=100),
        ),
    ),
    "digits-dit": Recipe(
        "The digits by a transformer: DiT on patches of 2x2 pixels, otherwise as digits.",
        "A minute and a half on two CPU cores. 98 % of the samples are recognised.",
        lambda: Preset(
            data    = DataConfig("digits"),
            model   = ddpm_jax.models.DiTConfig(image_size=8, channels=1, dim=96, depth=4, num_heads=4),
            process = _diffusion("cosine", prediction="v"),
            train   = TrainConfig(steps=1_600, batch_size=64, lr=4e-3, warmup_steps=50, lr_decay="cosine", ema_decay=0.995,
                                  log_every=20, sample_every=800, checkpoint_every=400),
            sample  = SampleConfig("ddim", steps=50, num=100),
        ),
    ),
    "digits-averages": Recipe(
        "The digits with power-function averages of two lengths, of which ddpm average makes others (Karras et al. 2024).",
        "Trains as long as digits.",
        lambda: Preset(
            data    = DataConfig("digits"),
            model   = _small_unet(),
            process = _diffusion("cosine", prediction="v"),
            train   = _minute(ema_decay=TrainConfig.ema_decay, ema_lengths=(0.1, 0.05), checkpoint_every=100, keep_every=100),
            sample  = SampleConfig("ddim", steps=50, num=100),
        ),
    ),
    "digits-meanflow": Recipe(
        "The digits in one step: the mean velocity over the way from noise to data (Geng et al. 2025).",
        "Two minutes on two CPU cores. 95 % of the samples are recognised; in two steps 98 %.",
        lambda: Preset(
            data    = DataConfig("digits"),
            model   = _small_unet(interval=True),
            process = ddpm_jax.processes.MeanFlow(),
            train   = _minute(),
            sample  = SampleConfig("euler", steps=1, clip=None, num=100),
        ),
    ),
    "digits-edm": Recipe(
        "The digits as Karras et al. 2022 train and sample: noise of log-normal sigma, 18 steps of Heun's method.",
        "Trains as long as digits. 97 % are recognised; they are nearer to the data than 250 ancestral steps of digits.",
        lambda: Preset(
            data    = DataConfig("digits"),
            model   = _small_unet(),
            process = ddpm_jax.processes.EDM(sigma_data=0.75, P_mean=-0.4, sigma_max=20.0),
            train   = _minute(),
            sample  = SampleConfig(ddpm_jax.samplers.Heun(churn=15.0), steps=18, clip=None, num=100),
        ),
    ),
    "digits-upscale": Recipe(
        "The digits from four grey means: 2x2 pixels are shown beside x_t, and 8x8 are drawn that belong to them.",
        "Trains as long as digits. 61 % of the samples are recognised as the digit whose means they were drawn for.",
        lambda: Preset(
            data    = DataConfig("digits", labels=False, condition="downsample:4"),
            model   = _small_unet(),
            process = _diffusion("cosine", prediction="v"),
            train   = _minute(),
            sample  = SampleConfig("ddim", steps=50, num=100),
        ),
    ),
    "images": Recipe(
        "Your own pictures: ddpm train images --data.source PATH; 32x32 in colour.",
        "Work for a GPU.",
        lambda: Preset(
            data    = DataConfig("", flip=True),
            model   = ddpm_jax.models.UNetConfig(dim=64),
            process = _diffusion("cosine"),
            train   = TrainConfig(batch_size=64, warmup_steps=1_000),
            sample  = SampleConfig("ddim", steps=100),
        ),
    ),
    "images-small": Recipe(
        "Your own pictures on a CPU: 16x16 in colour, a small network; ddpm train images-small --data.source PATH.",
        "A minute or so on two CPU cores.",
        lambda: Preset(
            data    = DataConfig(""),
            model   = ddpm_jax.models.UNetConfig(image_size=16, dim=16, dim_mults=(1, 2), num_blocks=1,
                                                 attention_resolutions=(8,), norm_groups=8),
            process = _diffusion("cosine", prediction="v"),
            train   = _minute(steps=300, batch_size=32, lr=4e-3, ema_decay=0.99, sample_every=0),
            sample  = SampleConfig("ddim", steps=50),
        ),
    ),
    "cifar10-ddpm": Recipe(
        "CIFAR-10 as in Ho et al. 2020, 800,000 steps.",
        "Work for a large GPU, not run here to its end. 3 images a second on a CPU core. FID 3.17 in the paper.",
        lambda: Preset(
            data    = DataConfig("tfds:cifar10", flip=True, labels=False),
            model   = ddpm_jax.models.UNetConfig(dropout=0.1),
            process = _diffusion("linear"),
            train   = TrainConfig(steps=800_000, batch_size=128, lr=2e-4, warmup_steps=5_000, ema_decay=0.9999,
                                  log_every=100, sample_every=10_000, checkpoint_every=5_000),
            sample  = SampleConfig("ancestral"),
        ),
    ),
    "cifar10-edm": Recipe(
        "CIFAR-10 as in Karras et al. 2022: DDPM++, without their augmentation.",
        "Work for eight GPUs, not run here. FID 1.97 in the paper, with augmentation.",
        lambda: Preset(
            data    = DataConfig("tfds:cifar10", flip=True, labels=False),
            model   = ddpm_jax.models.EDMUNetConfig(),
            process = ddpm_jax.processes.EDM(),
            train   = TrainConfig(steps=390_000, batch_size=512, lr=1e-3, warmup_steps=19_500, grad_clip=None, ema_decay=0.9993,
                                  log_every=100, sample_every=10_000, checkpoint_every=5_000),
            sample  = SampleConfig("heun", steps=18, clip=None),
        ),
    ),
    "cifar10-flow": Recipe(
        "CIFAR-10 by flow matching, with the network of Ho et al. 2020.",
        "Work for a large GPU, not run here.",
        lambda: Preset(
            data    = DataConfig("tfds:cifar10", flip=True, labels=False),
            model   = ddpm_jax.models.UNetConfig(dropout=0.1),
            process = ddpm_jax.processes.FlowMatching(time_draw="logit_normal"),
            train   = TrainConfig(steps=400_000, batch_size=128, lr=2e-4, warmup_steps=5_000, ema_decay=0.9999,
                                  log_every=100, sample_every=10_000, checkpoint_every=5_000),
            sample  = SampleConfig("heun", steps=50, clip=None),
        ),
    ),
    "cifar10-dit": Recipe(
        "CIFAR-10 by class with DiT-S/2 on the pixels, which learns its variance and can be guided.",
        "Work for a large GPU, not run here.",
        lambda: Preset(
            data    = DataConfig("tfds:cifar10", flip=True),
            model   = ddpm_jax.models.DiTConfig(num_classes=11, learn_variance=True),  # the last: none
            process = _diffusion("linear", loss="hybrid", learned_variance=True),
            train   = TrainConfig(steps=400_000, batch_size=256, lr=1e-4, label_dropout=0.1, grad_clip=None, ema_decay=0.9999,
                                  log_every=100, sample_every=10_000, checkpoint_every=5_000),
            sample  = SampleConfig(ddpm_jax.samplers.Ancestral("learned"), steps=250, spacing="linspace"),
        ),
    ),
    "mnist-convnext": _system(
        "convnext_unet", "System 1: MNIST by class, 20 epochs of 468 steps.",
        "2 hours on two CPU cores. A third of it: 96 % recognised, by DDIM with eta 1 and clip 1 in 35 steps.",
        DataConfig("tfds:mnist"),                                _adam(1e-3, 128, epochs=20)),
    "imagenet-convnext": _system(
        "convnext_unet_224", "System 1 at 224x224: ImageNet by class; meant for many devices.",
        "Work for many devices: 1.3 TFLOP an image.",
        DataConfig("tfds:imagenet2012", flip=True),              _adam(1e-3, 128, epochs=20, checkpoint_every=1_000)),
    "mnist-tiny": _system(
        "tiny_unet", "System 2: MNIST at 32x32, 50 epochs of 15 steps.",
        "2 hours on two CPU cores, with --train.accumulate 64. Loss 0.07 after 118 steps.",
        DataConfig("tfds:mnist"),                                _adam(1e-3, 4096, epochs=50, log_every=5, checkpoint_every=100)),
    "cifar10-double-conv": _system(
        "double_conv_unet", "System 2: CIFAR-10 in [0, 1], 15 epochs of 98 steps; then ddpm finetune RUN --data.classes ship.",
        "4 hours on two CPU cores. Loss 0.046 after 136 steps.",
        DataConfig("tfds:cifar10", scale="unit"),                _adam(1e-3, 512, epochs=15, log_every=10, checkpoint_every=100)),
    "fashion-annotated": _system(
        "annotated_unet", "System 3: Fashion-MNIST, 10 epochs of 3,750 steps.",
        "2 hours on two CPU cores. Loss, on digits: 0.07 after 1,000 steps, 0.04 after 4,700.",
        DataConfig("tfds:fashion_mnist", flip=True),             _adam(1e-4, 16, epochs=10, lr_decay="cosine_by_epoch", lr_end=1e-7,
                                                                       checkpoint_every=750, sample_every=3_750)),
    "spiral": _system(
        "mlp", "System 4: 25,000 points of a spiral, 40 epochs of 1,000 steps.",
        "A minute. As far from held-out points as 1.7 times other real points.",
        DataConfig("spiral"),                                    _adam(1e-3, 25, epochs=40, reset_optimizer=True, log_every=500,
                                                                       checkpoint_every=10_000)),
    "disc-grid": _system(
        "mlp", "System 4: 25,000 points of a grid of discs, 40 epochs of 1,000 steps.",
        "A minute. As far from held-out points as 1.3 times other real points.",
        DataConfig("disc-grid"),                                 _adam(1e-3, 25, epochs=40, reset_optimizer=True, log_every=500,
                                                                       checkpoint_every=10_000)),
    "spiral-flow": Recipe(
        "The spiral by flow matching, otherwise as spiral.",
        "Trains as long as spiral.",
        lambda: Preset(
            data    = DataConfig("spiral"),
            model   = ddpm_jax.models.MLPConfig(),
            process = ddpm_jax.processes.FlowMatching(),
            train   = _adam(1e-3, 25, epochs=40, reset_optimizer=True, log_every=500, checkpoint_every=10_000),
            sample  = SampleConfig("heun", steps=50, clip=None, num=1200),
        ),
    ),
    "spiral-iadb": Recipe(
        "The spiral by iterative alpha-(de)blending, otherwise as spiral.",
        "Trains as long as spiral.",
        lambda: Preset(
            data    = DataConfig("spiral"),
            model   = ddpm_jax.models.MLPConfig(),
            process = ddpm_jax.processes.AlphaBlending(),
            train   = _adam(1e-3, 25, epochs=40, reset_optimizer=True, log_every=500, checkpoint_every=10_000),
            sample  = SampleConfig("euler", steps=200, clip=None, num=1200),
        ),
    ),
    "mnist-strided": _system(
        "strided_unet", "System 5: MNIST as 32x32 in three channels.",
        "15 minutes on two CPU cores. Loss 0.05.",
        DataConfig("tfds:mnist", labels=False),                  _adam(1e-4, 16, steps=10_000)),
    "cifar10-strided": _system(
        "strided_unet", "System 5: CIFAR-10.",
        "15 minutes on two CPU cores. Loss 0.075.",
        DataConfig("tfds:cifar10", labels=False),                _adam(1e-4, 16, steps=10_000)),
    "mnist-strided-conditional": _system(
        "strided_unet_conditional", "System 5: MNIST by class.",
        "40 minutes on two CPU cores. Loss 0.05 after 8,000 steps.",
        DataConfig("tfds:mnist"),                                _adam(1e-4, 16, steps=25_000)),
    "cifar10-strided-conditional": _system(
        "strided_unet_conditional", "System 5: CIFAR-10 by class.",
        "40 minutes on two CPU cores. Loss 0.066 after 16,000 steps.",
        DataConfig("tfds:cifar10"),                              _adam(1e-4, 16, steps=25_000)),
}
"""name -> preset and what to expect of it; `ddpm train NAME` runs it."""
# fmt: on


def preset(name: str) -> Preset:
    """The named preset.

    Raises:
        UserError: no such preset (lists the names).
    """
    if name not in RECIPES:
        raise UserError(f"the preset must be one of {', '.join(RECIPES)}; got {name!r}.{meant(name, RECIPES)}")
    return RECIPES[name].config
