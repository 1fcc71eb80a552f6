"""What of a run's config excludes each other: every command refuses it by the same sentence, before any work."""

import dataclasses
import json
import re
from typing import Any, NamedTuple

import pytest

from ddpm_jax import models, schedules
from ddpm_jax.cli import main
from ddpm_jax.conversion.runs import to_run
from ddpm_jax.data import Scaling
from ddpm_jax.errors import UserError
from ddpm_jax.named import tree_of
from ddpm_jax.presets import RECIPES, DataConfig, Preset, SampleConfig, TrainConfig, preset
from ddpm_jax.processes import FlowMatching, GaussianDiffusion
from ddpm_jax.samplers import Ancestral, as_sampler
from ddpm_jax.training import Drawing, finetune, train
from ddpm_jax.training.objective import check
from ddpm_jax.training.run import Run, create_folder, open_run

UNET = models.UNetConfig(image_size=8, channels=1, dim=4, dim_mults=(1,), num_blocks=1, norm_groups=2, num_classes=10)
BASE = Preset(
    model=UNET,
    process=GaussianDiffusion(schedules.linear(20)),
    train=TrainConfig(epoch_steps=14),
    sample=SampleConfig("ddim", 4),
)
LEARNED = dataclasses.replace(UNET, learn_variance=True)
BLIND = GaussianDiffusion(schedules.linear(20, zero_terminal_snr=True), "v")
FLOW = FlowMatching()


class Case(NamedTuple):
    """A run that is sound but for the options of sampling."""

    run: Preset
    sampling: dict[str, Any]
    sentence: str


CASES = {
    "a bound on a run in [0, 1]": Case(
        dataclasses.replace(BASE, data=DataConfig(scale="unit"), sample=SampleConfig("ddim", 4, clip=None)),
        {"clip": 1.0},
        "sample.clip bounds what lies in [-clip, clip], and data.scale = unit gives [0, 1]: sample.clip must be None; got 1.",
    ),
    "points that are stretched": Case(
        dataclasses.replace(preset("spiral"), train=TrainConfig(epoch_steps=1)),
        {"stretch": True},
        "sample.stretch is for images; mlp makes points.",
    ),
    "more steps than there are": Case(BASE, {"steps": 21}, "steps must lie in 1..20 (the schedule's length); got 21."),
    "a sampler of straight paths": Case(
        BASE,
        {"sampler": "midpoint"},
        "sampler = midpoint needs times between timesteps, which process.kind = diffusion has not.",
    ),
    "a sampler of chains": Case(
        dataclasses.replace(BASE, process=FLOW),
        {"sampler": "strided"},
        "sampler = strided walks a chain of timesteps, which process.kind = flow has not.",
    ),
    "a spacing of chains": Case(
        dataclasses.replace(BASE, process=FLOW),
        {"spacing": "trailing"},
        "spacing = trailing is made of timesteps, and process.kind = flow has none; use even.",
    ),
    "a sampler that needs data in x_T": Case(
        dataclasses.replace(BASE, process=BLIND),
        {"sampler": "heun"},
        "sampler = heun works in sigma / alpha, which is infinite in x_T at a zero terminal SNR.",
    ),
    "a spacing that needs data in x_T": Case(
        dataclasses.replace(BASE, process=BLIND),
        {"spacing": "karras"},
        "spacing = karras needs data in x_T, and the schedule ends at pure noise; use even.",
    ),
    "a spacing of a sampler that has its own": Case(
        dataclasses.replace(BASE, sample=SampleConfig("strided", 4)),
        {"spacing": "even"},
        "sampler = strided has times of its own: spacing must be None; got 'even'.",
    ),
    "guidance without a hidden label": Case(
        BASE,
        {"guidance": 2.0},
        "sample.guidance = 2 needs a network that is trained with some labels hidden: "
        "train.label_dropout must be above 0; got 0.",
    ),
    "a variance that is not learned": Case(
        BASE,
        {"sampler": Ancestral("learned")},
        "variance = learned needs a network that learns it: model.learn_variance must be True.",
    ),
}

PROCESSES = {
    "noise predicted where there is nothing else": (
        {"process": {"zero_terminal_snr": True}},
        "prediction = eps says nothing where x_t holds no data, as at a zero terminal SNR: use v or x0.",
    ),
    "the same by betas": (
        {"process": {"beta_end": 1.0}},
        "prediction = eps says nothing where x_t holds no data, as at a zero terminal SNR: use v or x0.",
    ),
    "a learned variance by the mean square alone": (
        {"model": {"learn_variance": True}},
        "a learned variance is trained by loss = hybrid or vlb alone; got mse.",
    ),
    "a variance that the loss learns and the network does not": (
        {"process": {"loss": "hybrid"}},
        "loss = hybrid trains a learned variance: it needs model.learn_variance = True.",
    ),
    "a learned variance of a flow": (
        {"model": {"learn_variance": True}, "process": tree_of(FLOW)},
        "model.learn_variance belongs to process.kind = diffusion; got flow.",
    ),
    "an option of diffusions": (
        {"process": {**tree_of(FLOW), "prediction": "v"}},
        "process has no option 'prediction'; it has num_steps, loss, time_draw.",
    ),
    "an option of another schedule": (
        {"process": {"schedule": "cosine"}},
        "process has no option 'beta_start'; it has schedule, num_steps, zero_terminal_snr, s, max_beta, prediction,",
    ),
}
"""Options that no choice of sampling mends, and what is said of them."""

DRAWN = ("sample RUN", "evaluate RUN", "evaluate RUN --likelihood", "evaluate RUN --fid", "edit RUN vary")


def folder_of(path, config, sampling=None, **parts):
    """A run folder without a checkpoint, whose config.json nobody has looked at: any work with it would fail otherwise."""
    run = Run(path, config, tuple("0123456789"), Scaling(0.5, 0.5))
    create_folder(run)
    tree = changed(json.loads((path / "config.json").read_text()), parts)
    tree["config"]["sample"] = tree_of(dataclasses.replace(config.sample, **sampling or {}))
    (path / "config.json").write_text(json.dumps(tree))
    return path


def changed(tree, parts):
    for part, options in parts.items():
        whole = options.get("kind", "diffusion") != "diffusion"
        tree["config"][part] = options if whole else tree["config"][part] | options
    return tree


def as_json(sampling):
    """Options of sampling as config.json and the command line have them."""
    sampler = sampling.get("sampler")
    return sampling | tree_of(as_sampler(sampler)) if sampler else sampling


def flags(sampling, prefix="--"):
    for name, value in sampling.items():
        yield prefix + name.replace("_", "-")
        if value is not True:
            yield str(value)


@pytest.fixture
def refusal(capsys):
    """refusal(arguments) -> what is said by a command that is refused."""

    def call(command, *options):
        try:
            status = main([*command, *options])
        except SystemExit as exit:
            status = exit.code
        assert status == 2, command
        # what a part refuses by itself may come in a box
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err).split())

    return call


def preset_of(config):
    """A preset of the same network, which `ddpm train` asks for beside --resume."""
    return "digits" if isinstance(config.model, models.UNetConfig) else "spiral"


def commands(folder, config, new):
    """Each command with a run that is there, the prefix of its options of sampling with it."""
    for command in DRAWN:
        yield [str(folder) if part == "RUN" else part for part in command.split()], "--"
    yield ["train", preset_of(config), "--out", str(folder), "--resume"], "--sample."
    yield ["finetune", str(folder), "--out", str(new)], "--sample."


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_command_refuses_by_the_same_sentence(case, tmp_path, refusal):
    folder = folder_of(tmp_path / "run", case.run)
    for command, prefix in commands(folder, case.run, tmp_path / "new"):
        assert case.sentence in refusal(command, *flags(as_json(case.sampling), prefix)), command
    bad = folder_of(tmp_path / "bad", case.run, case.sampling)
    for command in (["plot", str(bad)], ["sample", str(bad)], ["finetune", str(bad), "--out", str(tmp_path / "new")]):
        assert case.sentence in refusal(command), command
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bad", "config.json", "config.json", "run"]


@pytest.mark.parametrize(("parts", "sentence"), PROCESSES.values(), ids=PROCESSES)
def test_every_command_refuses_a_process_by_the_same_sentence(parts, sentence, tmp_path, refusal):
    folder = folder_of(tmp_path / "run", BASE, **parts)
    for command, _ in [*commands(folder, BASE, tmp_path / "new"), (["plot", str(folder)], "")]:
        assert sentence in refusal(command), command
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "run"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_python_callers_are_told_the_same(case, tmp_path):
    run = open_run(folder_of(tmp_path / "run", case.run))

    def sampling():
        return dataclasses.replace(run.config.sample, **case.sampling)

    def config():
        return dataclasses.replace(run.config, sample=sampling())

    calls = [
        lambda: train(config(), tmp_path / "new"),
        lambda: finetune(run, config(), tmp_path / "new"),
        lambda: Drawing(run, sampling()),
    ]
    if case.run.data.scale == "signed":  # as what is imported always is
        calls.append(
            lambda: to_run(tmp_path / "new", case.run.model, {}, process=case.run.process, sampling=sampling())
        )
    for call in calls:
        with pytest.raises(UserError) as error:
            call()
        assert case.sentence in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GaussianDiffusion(schedules.linear(20, beta_end=1.0)), "prediction = eps says nothing"),
        (
            lambda: dataclasses.replace(BASE, model=LEARNED),
            "a learned variance is trained by loss = hybrid or vlb alone",
        ),
        (
            lambda: dataclasses.replace(BASE, model=LEARNED, process=FLOW),
            "belongs to process.kind = diffusion; got flow",
        ),
        (lambda: dataclasses.replace(BASE, process=20), "process must be one of processes.Process; got 20"),
        (lambda: SampleConfig(sampler=3), "sampler must be one of"),
    ],
)
def test_no_config_is_made_of_what_does_not_fit(make, sentence):
    with pytest.raises(UserError) as error:
        make()
    assert sentence in str(error.value)


@pytest.mark.parametrize("arguments", ["--eta 0.5 --sampler dpmpp", "--sampler ancestral --eta=0.5", "--churn 1"])
def test_options_of_another_sampler_are_told(arguments, tmp_path, refusal):
    folder = folder_of(tmp_path / "run", BASE)
    assert re.search(
        r"--(eta belongs to --sampler ddim and euler and strided; got (dpmpp|ancestral)"
        r"|churn belongs to --sampler heun; got ddim)\.",
        refusal(["sample", str(folder), *arguments.split()]),
    )


def test_what_mends_it_is_let_through(tmp_path, refusal):
    """A run whose config.json holds what is refused now opens, and goes on with other options: here to its missing checkpoint."""
    bad = folder_of(tmp_path / "run", BASE, {"guidance": 2.0})
    assert "needs a network that is trained with some labels hidden" in refusal(["sample", str(bad)])
    assert "holds no checkpoint yet" in refusal(["sample", str(bad), "--guidance", "1"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_passes(name):
    check(preset(name))
