"""ddpm_jax.presets: every preset builds, JSON brings it back, and what is wrong is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from ddpm_jax import models, presets
from ddpm_jax.errors import UserError
from ddpm_jax.presets import RECIPES, Preset, SampleConfig, TrainConfig


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(name):
    """Equality of frozen dataclasses compares every field, tuples against tuples."""
    config = RECIPES[name].config
    text = presets.to_json(config)
    assert presets.from_json(text) == config and presets.to_json(presets.from_json(text)) == text
    assert set(json.loads(text)) == {"data", "model", "process", "train", "sample"}
    assert hash(presets.from_json(text)) == hash(config)  # jit's static arguments need it


OLDER = json.loads(Path(__file__).with_name("older_configs.json").read_text())
"""What the versions of formats 2 and 3 wrote of some presets into a run's config.json."""


@pytest.mark.parametrize(("version", "name"), [(version, name) for version in OLDER for name in OLDER[version]])
def test_configs_of_older_formats_are_read(version, name):
    old = OLDER[version][name]
    assert presets.differences(presets.preset(name), presets.from_json(json.dumps(old))) == {}
    assert set(old["process"]) != set(json.loads(presets.to_json(presets.preset(name)))["process"])


def test_json_keeps_what_is_not_the_default():
    config = Preset(
        model=dataclasses.replace(Preset().model, dim_mults=(1, 3), attention_resolutions=(), num_classes=7),
        train=TrainConfig(grad_clip=None, steps=3),
        sample=SampleConfig(steps=None, clip=None),
    )
    assert presets.from_json(presets.to_json(config)) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_builds(name):
    """Shapes alone, no arithmetic: the network answers its own images with its own channels, or twice as many with a variance."""
    config = RECIPES[name].config
    model = config.model
    graphdef, variables = models.split(models.abstract(model))
    x_t = jax.ShapeDtypeStruct((2, *model.shape), "float32")
    t = jax.ShapeDtypeStruct((2,), "int32")
    labels = t if getattr(model, "num_classes", None) else None
    t = jax.ShapeDtypeStruct((2, 2), "float32") if getattr(model, "interval", False) else t
    output, _ = jax.eval_shape(lambda *args: models.apply(graphdef, *args), variables, x_t, t, labels)
    learned = getattr(model, "learn_variance", False) + 1
    assert output.shape == (*x_t.shape[:-1], learned * x_t.shape[-1])
    steps = config.process.sampling_steps(config.sample.steps)
    assert len(config.sample.sampler.grid(config.process, config.sample.steps)) == steps


def test_unknown_preset_lists_the_names():
    with pytest.raises(UserError, match=r"one of digits, digits-flow, .*images.*'digit'"):
        presets.preset("digit")


def edited(change):
    """The JSON of a preset after `change(tree)`."""
    tree = json.loads(presets.to_json(RECIPES["digits"].config))
    change(tree)
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "config.json cannot be read"),
        ("{", "config.json cannot be read"),
        ("[]", "config.json cannot be read"),
        ("3", "config.json cannot be read"),
        (edited(lambda tree: tree["train"].update(learning_rate=1)), "learning_rate"),
        (edited(lambda tree: tree.update(colour="red")), "colour"),
        (edited(lambda tree: tree.pop("model")), "model"),
        (edited(lambda tree: tree.update(train=5)), "train must be an object; got 5"),
        (
            edited(lambda tree: tree["train"].update(steps="many")),
            r"train\.steps must be a whole number or null; got 'many'",
        ),
        (edited(lambda tree: tree["train"].update(steps=0)), r"train\.steps"),
        (
            edited(lambda tree: tree["sample"].update(sampler="ddin")),
            r"sample\.sampler must be one of .*'ddin'.*'ddim'",
        ),
        (edited(lambda tree: tree["sample"].update(sampler=3)), r"sample\.sampler must be text; got 3"),
        (
            edited(lambda tree: tree["sample"].update(churn=1.0)),
            r"sample has no option 'churn'; it has sampler, eta, steps",
        ),
        (edited(lambda tree: tree["process"].update(kind="flows")), r"kind must be one of .*'flows'"),
        (edited(lambda tree: tree["process"].update(schedule=None)), r"process\.schedule must be text; got None"),
    ],
)
def test_from_json_refuses(text, names):
    with pytest.raises(UserError, match=names):
        presets.from_json(text)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TrainConfig, {"steps": 0}, r"train\.steps must be at least 1, or None; got 0"),
        (TrainConfig, {"batch_size": -1}, r"train\.batch_size"),
        (TrainConfig, {"log_every": 0}, r"train\.log_every"),
        (TrainConfig, {"keep_checkpoints": 0}, r"train\.keep_checkpoints"),
        (TrainConfig, {"warmup_steps": -1}, r"train\.warmup_steps must not be negative"),
        (TrainConfig, {"seed": -1}, r"train\.seed"),
        (TrainConfig, {"lr": 0.0}, r"train\.lr must be positive"),
        (TrainConfig, {"lr": float("nan")}, r"train\.lr"),
        (TrainConfig, {"ema_decay": 1.0}, r"train\.ema_decay must lie in \[0, 1\)"),
        (TrainConfig, {"ema_decay": float("nan")}, r"train\.ema_decay"),
        (TrainConfig, {"lr": float("inf")}, r"train\.lr"),
        (TrainConfig, {"grad_clip": 0.0}, r"train\.grad_clip must be positive, or None"),
        (TrainConfig, {"grad_clip": float("nan")}, r"train\.grad_clip"),
        (TrainConfig, {"lr_decay": "cosine", "warmup_steps": 10, "steps": 10}, r"warmup_steps must be below"),
        (SampleConfig, {"num": 0}, r"sample\.num"),
        (SampleConfig, {"steps": 0}, r"sample\.steps"),
        (SampleConfig, {"clip": 0.0}, r"sample\.clip"),
        (SampleConfig, {"clip": float("nan")}, r"sample\.clip"),
    ],
)
def test_numbers_out_of_range_are_named(kind, options, message):
    with pytest.raises(UserError, match=message):
        kind(**options)


def test_differences():
    old = RECIPES["digits"].config
    assert presets.differences(old, presets.from_json(presets.to_json(old))) == {}
    new = dataclasses.replace(
        old, train=dataclasses.replace(old.train, lr=1.0), model=dataclasses.replace(old.model, dim_mults=(1,))
    )
    expected = {"model.dim_mults": ((1, 2), (1,)), "train.lr": (old.train.lr, 1.0)}
    assert presets.differences(old, new) == expected
