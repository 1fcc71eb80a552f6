"""The two sides line up: the same files, names, arguments in the same order and defaults; where they do not, a reason is given."""

import dataclasses
import fnmatch
import importlib
import inspect
from pathlib import Path

import pytest

import ddpm_jax
import ddpm_torch_ref
from ddpm_jax import models
from ddpm_torch_ref.models import MODELS

PAIRS = {
    "schedules": "schedules",
    "processes": "processes",
    "denoisers": "denoisers",
    "operators": "operators",
    "posterior": "posterior",
    "samplers": "samplers",
    "bound": "bound",
    "evaluation.likelihood": "likelihood",
    "models": "models",
    "training": "training",
    "training.loss_aware": "training.loss_aware",
    "training.update": "training.update",
}
"""Our module: the twin's. Layers, Inception's too, are held to each other by the names of their weights, which are the same."""

WORDS = {"key": "generator"}
"""Our name of an argument: the twin's word for the thing."""

REASONS = {
    "the command line chooses by name, and the twin has none": (
        "schedules.create",
        "schedules.NamedSchedule",
        "schedules.*.zero_terminal_snr",
        "schedules.Schedule.title",
        "*.family",
        "*.made",
        "*.member",
        "*.members",
        "processes.*.name",
        "operators.*.name",
        "posterior.*.name",
        "samplers.as_sampler",
        "samplers.SAMPLERS",
        "samplers.*.name",
    ),
    "a network's options are a dataclass, of which the command line makes flags": (
        "models.build",
        "models.*Config",
        "models.MODELS",
        "models.NETWORKS",
        "models.configure",
        "models.kind_of",
        "models.simplest",
        "models.unet_of",
    ),
    "a named schedule is a class, by whose field the command line asks for the rescaling; `linear` and `Linear` are the same": (
        "schedules.Cosine",
        "schedules.CosineUnclipped",
        "schedules.Linear",
        "schedules.LinearInclusive",
        "schedules.Quadratic",
        "schedules.Sigmoid",
        "schedules.SigmoidCumprod",
    ),
    "checks of a caller's arguments; the twin's are in its checks.py": (
        "processes.as_times",
        "processes.check_floats",
    ),
    "it takes a TrainConfig, a preset's; the twin, which has no presets, takes the numbers": (
        "training.make_optimizer",
        "training.learning_rate",
    ),
    "runs, their folders, and drawing and finetuning from them": (
        "training.Conditions",
        "training.Drawing",
        "training.Outcome",
        "training.Run",
        "training.finetune",
        "training.open_run",
        "training.train",
        "training.TRACKERS",
        "training.Tracker",
        "likelihood.Likelihood",
        "likelihood.evaluate_likelihood",
    ),
    "an NNX module becomes pure functions of its arrays; a PyTorch module is called as it is": (
        "models.Model",
        "models.Variables",
        "models.abstract",
        "models.apply",
        "models.fact",
        "models.for_training",
        "models.merge",
        "models.num_params",
        "models.parts",
        "models.rematerialised",
        "models.split",
        "models.UNet",
        "models.create.rngs",
        "denoisers.of_network",
        "training.TrainState.params",
        "training.TrainState.batch_stats",
        "training.TrainState.ema_params",
        "training.TrainState.graphdef",
        "training.TrainState.variables",
        "training.TrainState.model",
        "training.TrainState.ema_model",
    ),
    "PyTorch binds an optimiser to its parameters: it is in the state, and its chain has no link that clips": (
        "training.TrainState.opt_state",
        "training.TrainState.optimizer",
        "training.*.optimizer",
        "training.*.grad_clip",
        "training.forgetful.*",
    ),
    "BatchNorm changes its buffers as it goes, so that what is kept is how they were before": (
        "training.*.batch_stats",
        "training.*.buffers_before",
    ),
    "nn.Dropout draws from PyTorch's default generator": ("training.*.Chance.generator", "training.Chance.generator"),
    "torch.autocast, around the call, says what is computed in": ("training.*.dtype",),
    "one device, and no compiler": (
        "training.*.gather",
        "training.Step.layout",
        "training.Step.on",
        "training.Step.many",
        "training.Step.program",
        "samplers.lower",
        "samplers.trace",
        "samplers.draw",
    ),
    "what is not finite is looked for, and told with advice": (
        "denoisers.remedies",
        "samplers.check_finite",
        "samplers.*.failure",
        "samplers.Walked.broke",
        "samplers.Walked.num_steps",
    ),
    "a caller's tuples, modules and states are taken for what they mean, or told what is right": (
        "denoisers.as_denoiser",
    ),
    "levels are Python's own numbers, one at a time, where ddpm_jax has arrays of one dtype": (
        "processes.*.level",
        "samplers.levels",
    ),
    "diffrax walks it: there is no solver of PyTorch's to compare with": ("samplers.Adaptive", "samplers.solve"),
    "a sampler may bring a walk of its own, as Adaptive does": ("samplers.*.walk",),
    "lax.scan wants a memory of one structure; the twin's is what there is to remember": ("samplers.Past",),
    "a pytree's class says its fields by itself": ("denoisers.Wrapper.inner",),
    "written as the paper's predictor and corrector, which the one step of ddpm_jax is held to": (
        "samplers.unipc_step",
    ),
    "Euler's step in sigma/alpha, which DDIM's, that ddpm_jax takes in its place, is held to": ("samplers.euler_step",),
}
"""Why names, arguments or methods are on one side alone, or differ: each reason with the paths that it is for."""

PATHS = [path for paths in REASONS.values() for path in paths]


def public(module):
    """Functions and classes that a module has for others, by name."""
    defined = [
        name
        for name, thing in vars(module).items()
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith(module.__name__)
    ]
    names = getattr(module, "__all__", defined)
    return {name: getattr(module, name) for name in names if not name.startswith("_")}


def parameters(function):
    """{name: (kind, default)} in their order, without self."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if callable(default) or (
            isinstance(default, tuple) and hasattr(default, "_fields")
        ):  # ours and theirs of one name
            default = getattr(default, "__name__", type(default).__name__)
        if hasattr(default, "betas"):
            default = default.name, default.num_steps
        found[WORDS.get(name, name)] = (parameter.kind.description, default)
    found.pop("self", None)
    return found


def members(kind):
    """Public fields, properties and methods of a class by name, those of its bases too."""
    names = {name for name in dir(kind) if name not in dir(tuple)}
    names |= {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return {
        WORDS.get(name, name): inspect.getattr_static(kind, name, None) for name in names if not name.startswith("_")
    }


def reason(path):
    """The entries of the table that speak of a path."""
    return [entry for entry in PATHS if fnmatch.fnmatchcase(path, entry)]


def compare_calls(path, ours, theirs):
    """(path, what is wrong) of two functions, or two constructors; arguments that have a reason are left out."""
    ours, theirs = parameters(ours), parameters(theirs)
    explained = {name for name in ours.keys() ^ theirs.keys() if reason(f"{path}.{name}")}
    yield from ((f"{path}.{name}", "on one side alone") for name in explained)
    ours, theirs = ([*side.items()] for side in (ours, theirs))
    ours, theirs = ([item for item in side if item[0] not in explained] for side in (ours, theirs))
    if ours != theirs:
        yield path, f"{ours}\nand {theirs}"


def compare(path, ours, theirs):
    """(path, what is wrong) of two things of one name."""
    if inspect.isclass(ours) and inspect.isclass(theirs):
        if not inspect.isabstract(ours):
            yield from compare_calls(path, ours, theirs)
        yield from compare_names(path, members(ours), members(theirs))
    elif (inspect.isfunction(ours) or inspect.isclass(ours)) and inspect.isfunction(theirs):
        yield from compare_calls(path, ours, theirs)
    elif isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() != theirs.keys():
        yield path, f"{[*ours]}\nand {[*theirs]}"


def compare_names(path, ours, theirs):
    """(path, what is wrong) of all names of two modules or two classes."""
    for name in sorted(ours.keys() | theirs.keys()):
        if name in ours and name in theirs:
            yield from compare(f"{path}.{name}", ours[name], theirs[name])
        else:
            yield f"{path}.{name}", "ddpm_torch_ref alone has it" if name in theirs else "ddpm_jax alone has it"


def differences(ours, theirs):
    modules = (importlib.import_module(name) for name in (f"ddpm_jax.{ours}", f"ddpm_torch_ref.{theirs}"))
    return list(compare_names(theirs, *map(public, modules)))


@pytest.mark.parametrize("ours", PAIRS)
def test_names_arguments_and_defaults(ours):
    unexplained = [f"{path}: {what}" for path, what in differences(ours, PAIRS[ours]) if not reason(path)]
    assert not unexplained, "\n".join(unexplained)


def test_every_reason_is_needed():
    needed = {
        entry for ours, theirs in PAIRS.items() for path, _ in differences(ours, theirs) for entry in reason(path)
    }
    assert needed == set(PATHS), set(PATHS) - needed


@pytest.mark.parametrize("name", models.NETWORKS)
def test_options_of_networks(name):
    ours = {field.name: field.default for field in dataclasses.fields(models.NETWORKS[name])}
    theirs = {name: default for name, (_, default) in parameters(MODELS[name].__init__).items()}
    assert list(ours.items()) == list(theirs.items())


def test_files():
    """What has a twin is in the file of the same name."""
    ours, theirs = (Path(package.__file__).parent for package in (ddpm_jax, ddpm_torch_ref))
    moved = {"likelihood.py": "evaluation/likelihood.py", "inception.py": "evaluation/inception.py"}
    files = {str(file.relative_to(theirs)) for file in theirs.rglob("*.py")}
    assert not {name for name in files if not (ours / moved.get(name, name)).exists()}
    for package in ("samplers", "training"):
        both = (public(importlib.import_module(f"{side}.{package}")) for side in ("ddpm_jax", "ddpm_torch_ref"))
        ours_by_name, theirs_by_name = both
        for name in ours_by_name.keys() & theirs_by_name.keys():
            if callable(ours_by_name[name]):
                places = [thing[name].__module__.partition(".")[2] for thing in (ours_by_name, theirs_by_name)]
                assert places[0] == places[1], name


# The walk itself: what it has to notice


def one(x, key, *, scale=1.0):
    """A function of ours."""


@pytest.mark.parametrize(
    "other",
    [
        lambda x, generator: None,
        lambda x, generator, scale=1.0: None,
        lambda x, generator, *, scale=2.0: None,
        lambda generator, x, *, scale=1.0: None,
        lambda y, generator, *, scale=1.0: None,
    ],
)
def test_the_comparison_notices(other):
    assert list(compare("module.one", one, other))
    assert not list(compare("module.one", one, lambda x, generator, *, scale=1.0: None))


def test_the_comparison_notices_members():
    @dataclasses.dataclass
    class Ours:
        x: float = 1.0

        def run(self, key): ...

        @property
        def size(self): ...

    @dataclasses.dataclass
    class Theirs:
        x: float = 2.0

        def run(self, key, times): ...

    assert [path for path, _ in compare("m.C", Ours, Theirs)] == ["m.C", "m.C.run", "m.C.size"]
