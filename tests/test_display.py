"""How objects show themselves: one short line each, whatever they hold, and pages of HTML in notebooks."""

import base64
import dataclasses
import enum
import importlib
import inspect
import io
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from ddpm_jax import (
    benchmark,
    condition,
    data,
    denoisers,
    display,
    doctor,
    editing,
    evaluation,
    models,
    noise,
    operators,
    parallel,
    posterior,
    presets,
    processes,
    samplers,
    schedules,
    training,
    verify,
    weights,
)
from ddpm_jax import compile as compiling
from ddpm_jax.data.folder import FolderSource
from ddpm_jax.data.subset import ClassSubset
from ddpm_jax.evaluation.likelihood import Likelihood
from ddpm_jax.figures import MARGIN
from ddpm_jax.launch import ParallelConfig
from ddpm_jax.training.samples import Batch, Samples

PACKAGES = [
    benchmark, compiling, condition,
    data, denoisers, doctor, editing, evaluation, models, noise, operators, parallel, posterior, presets,
    processes, samplers, schedules, training, verify, weights,
]  # fmt: skip
CHAIN = processes.GaussianDiffusion(schedules.cosine(1000), "v", loss="huber", weighting="min_snr", min_snr_gamma=3.0)
IMAGES = jnp.ones((64, 8, 8, 3))
OPTIONS = {"image_size": 8, "dim": 4, "dim_mults": (1,), "num_blocks": 1, "norm_groups": 2, "attention_resolutions": ()}


def half(x_t, t):
    return x_t / 2


def half_of_all(x):
    return x / 2


def public(module):
    """Classes of a module's `__all__`, or those that it defines itself."""
    names = getattr(module, "__all__", None) or [
        n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
    ]
    found = [getattr(module, name) for name in names if not name.startswith("_")]
    return [kind for kind in found if inspect.isclass(kind) and not inspect.isabstract(kind) and not is_protocol(kind)]


CALL = verify.Call("down.0" * 30, "Conv", {"0": np.zeros((64, 8))}, {"": np.zeros((64, 8))}, {"eps": 1e-5})
RECORDED = CALL, verify.Recording("JAX", [CALL] * 1000, CALL.inputs, CALL.outputs)
FAULT = verify.Fault(
    "layer", "down.0" * 30, "", 1e-3, "in channel 3 of 8 alone", "epsilon 1e-06 in JAX, 1e-05 in PyTorch"
)


def is_protocol(kind):
    return getattr(kind, "_is_protocol", False) or kind in (denoisers.Wrapper, display)


def trainings():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 2)
    ours = verify.JaxTraining(half, {"kernel": jnp.ones((2, 2))}, optax.adam(1e-3))
    return ours, verify.TorchTraining(half, module, torch.optim.SGD(module.parameters(), 1.0))


@pytest.fixture(scope="module")
def objects(finished_run):
    """One object, or several, of every public class, and of what public functions return."""
    run = training.open_run(finished_run)
    model = models.create("unet", rngs=nnx.Rngs(0), num_classes=11, **OPTIONS)
    network = denoisers.of_network(model, CHAIN, labels=np.arange(64) % 10, null_label=10, dtype="bfloat16")
    hat = processes.Estimate(IMAGES, IMAGES)
    level = processes.Level(IMAGES, IMAGES)
    row = verify.Row("layers", "down.0.blocks.0.conv1" * 3, (3, 8, 8, 64), 1e-3, 1e-5, 1e-6, 1e-7, "a note")
    timed = benchmark.Row("unet", "train", "torch", 16, 12.5, (11.0, 14.0), 100, 3.0, ratio=1.2)
    named = [getattr(schedules, name)(1000) for name in schedules.SCHEDULES]
    state = training.create_state(model, optax.adam(1e-3))
    drawing = training.Drawing(run, run.config.sample, (state.variables(ema=True), 12), seed=3)
    images = np.zeros((64, 8, 8, 3), np.uint8)
    classifier = evaluation.train_classifier(
        np.arange(64, dtype=np.uint8)[:, None, None, None] + images, np.arange(64) % 2, 2, epochs=1
    )
    step = training.make_step(CHAIN, optax.adam(1e-3), label_dropout=0.1, accumulate=2)
    figures = compiling.Estimated(
        preset="cifar10-ddpm", what="train", topology="v5e:2x4", devices=8, mode="data", dtype="bfloat16", examples=128, steps=1,
        effort="quick", versions={"jax": "0.10.2"}, fits=True, memory=compiling.Memory(peak=1e9), compile_s=3.0,
        convolutions=(compiling.Counted("bf16 NHWC", 155),) * 100,
    )  # fmt: skip
    exactness, speed = (
        doctor.Exactness("unet", "highest", 1e-6, 1e-5, 3.0),
        doctor.Speed("train", 100.0, 0.5, None, 1.0),
    )
    diagnosis = doctor.Diagnosis(
        versions={"jax": "0.10.2"}, devices=[{"kind": "cpu"}], environment={}, exactness=[exactness] * 100, speed=[speed],
        memory={}, folder={}, seconds=60.0,
    )  # fmt: skip
    shown = [
        figures, figures.memory, compiling.Moved("all-reduce", "f32", 2.0, 1e8), *figures.convolutions[:1], compiling.Costs(),
        compiling.topology("v5e:2x4"), *compiling.CHIPS.values(), compiling.Program(None, 128), exactness, speed, diagnosis,
        compiling.parse("ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[]{} parameter(0)\n}"),
        *named,
        schedules.zero_terminal_snr(schedules.linear(1000)),
        schedules.from_betas(np.full(1000, 0.1)),
        *(dataclasses.replace(CHAIN, schedule=schedule) for schedule in named),
        processes.FlowMatching(10, "huber", "logit_normal"), processes.AlphaBlending(), processes.EDM(1.0),
        processes.MeanFlow(apart=0.5), hat, level,
        model, *(models.create(name, rngs=nnx.Rngs(0)) for name in ("mlp", "conv_net")), models.split(model)[0],
        network, denoisers.clipped(denoisers.guided(network, 2.0, interval=(0.0, 500.0), rescale=0.7)),
        denoisers.thresholded(denoisers.guided(network, 2.0, other=network), 0.995),
        denoisers.self_conditioned(network).given(IMAGES), denoisers.classifier_guided(network, lambda x, t: x.sum((1, 2, 3))),
        *(kind() for kind in operators.Operator.members.values()), operators.Mask(IMAGES > 0), operators.of(half_of_all, (8, 8, 3)),
        *(kind() for kind in posterior.Method.members.values()),
        posterior.conditioned(network, operators.Blur(2.0), IMAGES, noise=0.1, method=posterior.DPS(3.0)),
        *(kind() for kind in samplers.SAMPLERS.values()), editing.RePaint(IMAGES, IMAGES > 0),
        samplers.Stepped(IMAGES, hat, (IMAGES, IMAGES)), samplers.Walked(IMAGES, IMAGES[None], jnp.ones(64), jnp.ones(64)),
        samplers.Past.empty(IMAGES, 3),
        *(recipe.config for recipe in presets.RECIPES.values()),
        *presets.RECIPES.values(), *(kind() for kind in models.NETWORKS.values()),
        *(getattr(config, part) for config in map(presets.preset, presets.RECIPES)
          for part in ("data", "model", "process", "train", "sample")),
        step, step.update, training.Examples(images, images, np.arange(64)), training.Chance(jax.random.key(0), jnp.array(True)),
        training.Gradients(np.ones(64), state.params, {}),
        run, drawing, state, run.abstract_state(), training.Outcome(run, 12, signal.SIGTERM, 3),
        Samples(images, np.arange(64), images[None], np.arange(4), 1.0, None), Batch(images, images[None], 4, 1.0),
        data.open_source("digits"), data.open_source("spiral"), data.Scaling(127.5, 127.5),
        ClassSubset(data.open_source("digits"), ["3", "7"]), FolderSource("folder", ["a.png"] * 1000, np.zeros(1000), (), "stop"),
        parallel.Layout(), parallel.Layout(jax.make_mesh((1,), ("data",)), "fsdp"), ParallelConfig(devices=8),
        row, verify.Options(names={"a" * 80: "b"}), verify.Coverage(3, ("alone",) * 50), FAULT, *RECORDED,
        verify.Report("a title" * 20, {"device": "cpu"}, [row] * 1000), verify.Report("another", {}, []),
        timed, benchmark.Report({"device": "cpu"}, [timed] * 100, ["not measured" * 20]), benchmark.workload("digits"),
        evaluation.Metric("fid", 3.0), evaluation.Evaluation((evaluation.Metric("fid", 3.0),) * 4, {"step": 3}, {}),
        evaluation.Bound(jnp.ones(64), jnp.ones((1000, 64))), Likelihood({}, 3.0, 0.1, 1.0, (1.0,) * 1000), classifier,
        *map(condition.as_condition, ("downsample:4", "gray", "mask:left")),
        training.Conditions(condition.as_condition("gray"), images.__getitem__, np.arange(64), data.Scaling(127.5, 127.5)),
        *data.FORMS.values(), data.Opening(label="a" * 80), data.Batches(iter([]), ["on", "off"]), data.Reading(rows=np.arange(64)),
        presets.RestoreConfig(noise=0.1),
        presets.EditConfig(seed=3), presets.ImportConfig("ema"), presets.OpenAIConfig(num_heads=4), presets.DDPConfig("pred_v"),
        presets.DiTImportConfig(3),
        evaluation.PrecisionRecall(0.5, 0.25), weights.layout(model)[0], weights.Rule(("a name",) * 100), *trainings(),
        verify.TrainingReport("training", {}, [row] * 1000, cause="a cause"),
        verify.Proposal({"a": "b"} , ("a",) * 1000, ("a",) * 1000, (), {"a": "b"}),
    ]  # fmt: skip
    return {f"{index} {type(thing).__name__}": thing for index, thing in enumerate(shown)}


def test_every_public_class_is_among_them(objects):
    kinds = {kind for thing in objects.values() for kind in type(thing).__mro__}
    wanted = {kind for module in PACKAGES for kind in public(module)}
    left = {kind for kind in wanted - kinds if not issubclass(kind, enum.Enum)}
    assert not left and len(wanted) > 50


def test_every_package_is_looked_at():
    folder = Path(display.__file__).parent
    there = {path.parent.name for path in folder.glob("*/__init__.py")} | {path.stem for path in folder.glob("*.py")}
    looked_at = {module.__name__.rpartition(".")[2] for module in PACKAGES}
    without = [
        name
        for name in there - looked_at - {"__init__", "ddpm_jax"}
        if public(importlib.import_module(f"ddpm_jax.{name}"))
    ]
    internal = {
        "archives",
        "arguments",
        "bound",
        "cli",
        "compilation",
        "display",
        "edits",
        "errors",
        "files",
        "hub",
        "launch",
        "named",
        "parsing",
        "pictures",
        "processors",
        "run_names",
        "run_config",
        "signals",
    }
    assert set(without) <= internal


def test_one_short_line_each(objects):
    for name, thing in objects.items():
        text = repr(thing)
        assert len(text) < 300 and "\n" not in text and "array(" not in text.lower() and " at 0x" not in text, (
            f"{name}: {text}"
        )
        assert str(thing) == text


def test_what_they_say():
    chain = processes.GaussianDiffusion(schedules.linear(1000))
    assert repr(chain) == "GaussianDiffusion(linear, T=1000, eps)"
    assert repr(CHAIN) == "GaussianDiffusion(cosine, T=1000, v, loss='huber', weighting='min_snr', min_snr_gamma=3)"
    assert repr(schedules.linear(1000)) == "Schedule(linear, t=0..999, betas 0.0001..0.02, A_T=4.04e-05)"
    assert repr(schedules.zero_terminal_snr(schedules.cosine_unclipped(50))).startswith(
        "Schedule(zero_terminal_snr(cosine_unclipped), t=1..50,"
    )
    denoise = denoisers.clipped(denoisers.of(chain, half))
    assert repr(denoise) == "clipped(of(half, GaussianDiffusion(linear, T=1000, eps)), bound=1)"
    model = models.create("mlp", rngs=nnx.Rngs(0))
    network = denoisers.of_network(model, chain, labels=3, null_label=10)
    told = "network(MLP(133,122 parameters), GaussianDiffusion(linear, T=1000, eps), labels=3, null_label=10)"
    assert repr(denoisers.clipped(denoisers.guided(network, 2.0))) == f"clipped(guided({told}, scale=2), bound=1)"
    assert repr(training.create_state(model, optax.sgd(1.0))) == "TrainState(step 0, 133,122 parameters)"
    assert repr(presets.preset("digits")) == (
        "Preset(unet, data 'digits', GaussianDiffusion(cosine, T=1000, v), 800 steps of 64, DDIM(eta=0.0))"
    )
    assert repr(presets.TrainConfig(steps=5, lr=1e-3)) == "TrainConfig(steps=5, lr=0.001)"
    assert repr(denoise(jnp.ones((2, 4)), 3)) == "Estimate(x_0=float32[2,4], eps=float32[2,4], variance_logit=None)"
    assert repr(data.open_source("digits")) == "ArraySource('digits', 1,797 examples, 10 classes)"


def test_within_a_program(capsys):
    """Numbers that are leaves are traced there, and have no value to show."""
    denoise = denoisers.clipped(denoisers.of(CHAIN, half))
    text = []
    jax.jit(lambda denoise: text.append(repr(denoise)) or jnp.zeros(()))(denoise)
    assert text[0].endswith("bound=float32[])")


def test_a_state_that_was_given_away():
    state = training.create_state(models.create("mlp", rngs=nnx.Rngs(0)), optax.sgd(1.0))
    jax.tree.map(lambda leaf: leaf.delete(), state)
    assert repr(state) == "TrainState(step int32[], 133,122 parameters)"


# Pages


def pictures(page):
    """The pictures within a page, decoded."""
    parts = page.split('src="data:image/png;base64,')[1:]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part.partition('"')[0]))).convert("L")) for part in parts]


def test_a_schedule_shows_its_curve():
    sys.modules.pop("matplotlib.pyplot", None)
    one, other = (pictures(schedule._repr_html_()) for schedule in (schedules.linear(1000), schedules.cosine(1000)))
    assert one[0].shape == other[0].shape and (one[0] != other[0]).mean() > 0.002
    assert "matplotlib.pyplot" not in sys.modules


def test_a_preset_shows_every_option():
    config = presets.preset("digits")
    page = config._repr_html_()
    for part in ("data", "model", "process", "train", "sample"):
        for field in dataclasses.fields(getattr(config, part)):
            assert f"<th>{part}.{field.name}</th>" in page
    assert (
        "<th>train.steps</th><td>800</td><td></td>" in page
        and "<th>train.epochs</th><td>None</td><td>default</td>" in page
    )


def test_a_run_shows_how_far_it_is(run):
    page = run._repr_html_()
    loss, samples = pictures(page)
    np.testing.assert_array_equal(samples, np.asarray(Image.open(run.folder / "samples.png").convert("L")))
    assert loss.std() > 0 and "step 12" in page and "<th>train.batch_size</th><td>8</td>" in page
    (run.folder / "samples.png").unlink()
    (run.folder / "metrics.jsonl").unlink()
    page = run._repr_html_()
    assert "no step recorded" in page and not pictures(page) and "<th>train.batch_size</th><td>8</td>" in page


def test_the_outcome_of_training_shows_its_run(run):
    assert training.Outcome(run, 12, None)._repr_html_() == run._repr_html_()


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1), np.array([3, 1, 2])),
        (np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1), None),
        (np.array([[0.0, 1.0], [2.0, 0.0]], np.float32), None),
    ],
)
def test_samples_show_what_was_drawn(values, labels):
    def shown(values):
        return pictures(Samples(values, labels, values[None], np.arange(1), 1.0, None)._repr_html_())

    (one,), (other,) = shown(values), shown(-values)
    assert one.shape == other.shape and (one != other).any()
    if values.ndim == 4:  # the first, enlarged, below its title
        top = MARGIN + (0 if labels is None else 17)
        first = one[top : top + 64, MARGIN : MARGIN + 64]
        assert (first == np.kron(values[0, :, :, 0], np.ones((8, 8)))).all()


def test_reports_show_their_tables():
    found = evaluation.Evaluation(
        (evaluation.Metric("class_agreement", 0.25, 0.5), evaluation.Metric("fid", 3.0)), {"step": 7}, {}
    )
    page = found._repr_html_()
    for name, samples, real in (("class agreement", "0.25", "0.5"), ("fid", "3", "-")):
        assert f"<tr><th>{name}</th><td>{samples}</td><td>{real}</td></tr>" in page
        assert f"{name:<24}{samples:>12}{real:>12}" in found.table().splitlines()
    assert "<th>step</th><td>7</td>" in page
    rows = [
        benchmark.Row("mlp", "train", "jax", 64, 2.0, (1.0, 3.0), 20, 1.5),
        benchmark.Row("mlp", "train", "torch", 64, 4.0, (3.0, 5.0), 20, 0.0, ratio=2.0),
    ]
    report = benchmark.Report({"device": "cpu"}, rows, ["a < b"])
    page = report._repr_html_()
    assert "<th>mlp</th><td>train</td><td>jax</td><td>32000.0</td><td>2.00</td><td>1.00 .. 3.00</td>" in page
    assert "<td>2.00x</td></tr>" in page and "a &lt; b" in page and "device cpu" in page
    assert report.table().splitlines()[-2].split() == [
        "train",
        "torch",
        "16000.0",
        "4.00",
        "3.00",
        "..",
        "5.00",
        "0.0",
        "2.00x",
    ]


def test_names_are_escaped(run):
    hostile = "<script>alert(1)</script>"
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, source=hostile))
    changed = dataclasses.replace(run, config=config, folder=run.folder.rename(run.folder.with_name('a<b>&"c')))
    page = changed._repr_html_()
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;" in page and "a&lt;b&gt;&amp;" in page
