"""ddpm_jax.parallel and launch: many devices compute what one does, many processes what one does, and what does not fit is refused.

Eight devices are simulated in a process of their own, for all comparisons of a precision together.
"""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from run_checks import state_in

from ddpm_jax import cli, data, launch, models, parallel, processes, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.launch import ParallelConfig
from ddpm_jax.parallel import ALONE, check_batch, layout_of
from ddpm_jax.training import Examples, Update, create_state, open_run, samples
from ddpm_jax.training.metrics import read_metrics
from ddpm_jax.training.npz_writer import NpzWriter

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / "scripts" / "launch" / "local.py"

# Eight simulated devices ----------------------------------------------------------------------------------------

QUICK = [
    "data", "pmap", "fsdp, accumulated, rematerialised",
]  # fmt: skip
SLOW = [
    "fsdp", "accumulated", "rematerialised", "data, accumulated", "pmap, accumulated", "data, loss-aware", "pmap, loss-aware",
    "data, stacked", "pmap, stacked", "restored on one", "restored as data", "restored on two", "samples", "samples, pmap",
    "samples, fsdp",
    "every sampler", "every sampler, pmap",
]  # fmt: skip


def compare(dtype, names):
    command = [sys.executable, str(ROOT / "tests" / "parallel_comparisons.py"), dtype, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_within(found, tolerance):
    """Whatever was compared; the loss-aware history remembers losses. Noise has no rounding."""
    assert found.pop("noise is the same", True) is True
    differences = {name: value for name, value in found.items() if name != "share of the state"}
    assert len(differences) >= 2 and all(value <= tolerance for value in differences.values()), found


@pytest.fixture(scope="module")
def on_eight_devices():
    return compare("float32", QUICK)


@pytest.mark.parametrize("name", QUICK)
def test_devices_do_not_change_what_is_computed(on_eight_devices, name):
    """Losses, parameters, their average and Adam's moments over 20 steps; samples and frames; to 1e-5 in float32."""
    assert_within(on_eight_devices[name], 1e-5)


def test_the_state_is_shared_out(on_eight_devices):
    """With fsdp a device holds an eighth of it, and the small tensors; else all of it."""
    assert on_eight_devices["data"]["share of the state"] == on_eight_devices["pmap"]["share of the state"] == 1
    assert 1 / 8 < on_eight_devices["fsdp, accumulated, rematerialised"]["share of the state"] < 1 / 4


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "names", "tolerance"), [("float32", SLOW, 1e-5), ("float64", QUICK + SLOW, 1e-12)])
def test_every_way_computes_the_same(dtype, names, tolerance):
    for found in compare(dtype, names).values():
        assert_within(found, tolerance)


# Accumulation and rematerialisation -----------------------------------------------------------------------------


def gradients_of(model, accumulate, *, size=8, shape=(4, 4, 1)):
    """Losses, gradients and running statistics of one batch."""
    rng = np.random.default_rng(0)
    x_0, noise = (jnp.asarray(rng.normal(size=(size, *shape)), jnp.float32) for _ in range(2))
    process = processes.GaussianDiffusion(schedules.create("linear", 10))
    update = Update(process, optax.sgd(1e-3), accumulate=accumulate)
    state = create_state(model, update.optimizer)
    return jax.jit(update.gradients)(state, Examples(x_0, noise, jnp.arange(size)))


def test_batch_norm_sees_each_part_of_an_accumulated_batch():
    """Of four parts, every fourth example each, as if they had been batches one after the other with the parameters as they are."""
    model = models.create("conv_net", rngs=nnx.Rngs(0), channels=1, dim=4)
    whole, parts = gradients_of(model, 1), gradients_of(model, 4)
    changed = [
        not np.allclose(a, b, rtol=1e-3) for a, b in zip(*map(jax.tree.leaves, (whole[1], parts[1])), strict=True)
    ]
    assert any(changed)
    # 0.9 of the running mean is kept at each of four parts, and at the one whole
    kept = jax.tree.leaves(jax.tree.map(np.abs, parts[2]))
    assert all(np.isfinite(leaf).all() for leaf in kept)
    means = [stats["norm"]["mean"] for stats in (whole[2], parts[2])]
    assert np.abs(means[1]).max() > 2 * np.abs(means[0]).max()


@pytest.mark.parametrize("network", ["conv_net", "mlp"])
def test_networks_without_blocks_take_remat(network):
    model = models.create(network, rngs=nnx.Rngs(0))
    assert models.split(model)[0] == models.split(models.rematerialised(model))[0]


@pytest.mark.parametrize(
    "network", ["unet", "convnext_unet", "tiny_unet", "double_conv_unet", "annotated_unet", "strided_unet"]
)
def test_every_network_has_blocks(network):
    """Traced, not compiled: the program holds parts whose activations the gradient computes again."""
    model = models.abstract(models.configure(network, {}))
    shape = model.config.shape

    def remats(remat):
        graphdef, variables = models.split(models.rematerialised(model) if remat else model, training=True)
        labels = jnp.zeros(1, int) if getattr(model.config, "num_classes", None) else None

        def output(variables, x):
            return models.apply(graphdef, variables, x, jnp.ones(1, int), labels, key=jax.random.key(0))

        program = jax.make_jaxpr(output)(variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        return len(re.findall(r"\bremat\w*\[", str(program)))

    assert remats(True) >= remats(False) + 4


# What does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"processes": 0}, "parallel.processes must be at least 1; got 0"),
        ({"process_id": -1}, "process_id must not be negative"),
        ({"processes": 2, "process_id": 2}, "must lie in 0..1, one for each of 2 processes; got 2"),
        ({"coordinator": "host"}, "HOST:PORT; got 'host'"),
        ({"mode": "pmap", "min_shard": 64}, "parallel.min_shard belongs to --parallel fsdp; got 64 with pmap"),
        ({"devices": 0}, "parallel.devices must be at least 1"),
    ],
)
def test_parallel_options(options, shown):
    with pytest.raises(UserError, match=re.escape(shown)):
        ParallelConfig(**options)


def test_options_that_belong_together():
    with pytest.raises(UserError, match=r"belong together; missing: coordinator, process_id\."):
        launch.join(ParallelConfig(processes=2))


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match=r"\$JAX_NUM_PROCESSES must be a whole number; got 'two'"):
        launch.join(ParallelConfig())
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="missing: coordinator, process_id"):
        launch.join(ParallelConfig())


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"at most 1, the cpu devices here; got 4"):
        layout_of(ParallelConfig(devices=4))


def mesh_of(count):
    """On which nothing can be computed, for it is one device many times."""
    return jax.sharding.Mesh(np.array(jax.devices()[:1] * count), (parallel.AXIS,))


@pytest.mark.parametrize(
    ("devices", "batch_size", "accumulate", "examples", "shown"),
    [
        (
            8,
            100,
            1,
            1000,
            "a multiple of 8 (8 devices); got 100. 96 or 104 would fit, or --parallel.devices 5.",
        ),
        (8, 4, 1, 1000, "got 4. 8 would fit, or --parallel.devices 4."),
        (
            4,
            20,
            2,
            1000,
            "(4 devices times train.accumulate = 2); got 20. 16 or 24 would fit, or --parallel.devices 2.",
        ),
        (8, 100, 1, 103, "got 100. 96 would fit, or --parallel.devices 5."),
        (8, 4, 1, 6, "the data's 6 examples cannot be shared by 8 devices; use fewer"),
    ],
)
def test_a_batch_that_the_devices_do_not_divide(devices, batch_size, accumulate, examples, shown):
    mesh = mesh_of(devices)
    with pytest.raises(UserError, match=re.escape(shown)):
        check_batch(replace(ALONE, mesh=mesh), batch_size, accumulate, examples)


def test_fsdp_takes_the_largest_dimension_that_can_be_shared():
    mesh = mesh_of(4)
    shapes = {"a": (3, 3, 8, 16), "b": (12, 8), "c": (7, 9, 11), "d": (4,)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def specs(**options):
        found = replace(ALONE, mesh=mesh, **options).abstract(tree)
        return {name: tuple(leaf.sharding.spec) for name, leaf in found.items()}

    found = specs(mode="fsdp", min_shard=96)
    assert found["a"] == (None, None, None, "data") and found["b"] == ("data", None)
    assert not any(found["c"]) and not any(found["d"])
    assert not any(map(any, specs(mode="data").values()))


def test_parameters_are_cast_before_they_are_brought_together():
    """What is moved, and multiplied, is in 16 bits; the gradients are those of the cast alone, in the parameters' own dtype."""
    layout = replace(ALONE, mesh=mesh_of(1), mode="fsdp")
    params = {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "bias": jnp.ones(4)}
    x = jnp.linspace(0.0, 2.0, 3).astype(jnp.bfloat16)

    def loss(cast, params):
        params = cast(params)
        return jnp.square(x @ params["kernel"] + params["bias"]).astype(jnp.float32).sum()

    moved = jax.jit(jax.value_and_grad(lambda p: loss(lambda p: layout.brought_together(p, jnp.bfloat16), p)))
    plain = jax.jit(jax.value_and_grad(lambda p: loss(lambda p: jax.tree.map(lambda a: a.astype(jnp.bfloat16), p), p)))
    for ours, expected in zip(*map(jax.tree.leaves, (moved(params), plain(params))), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, expected)
    text = moved.lower(params).as_text()
    assert (
        "optimization_barrier" in text
        and "tensor<3x4xbf16>" in text.partition("optimization_barrier")[2].splitlines()[0]
    )
    assert "optimization_barrier" not in jax.jit(layout.brought_together).lower(params).as_text()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("--train.batch-size 10 --train.accumulate 4", "train.accumulate must divide train.batch_size = 10; got 4"),
        ("--parallel fsdp --parallel.devices 3", "parallel.devices must be at most 1"),
        ("--parallel.coordinator 127.0.0.1:1", "missing: processes, process_id"),
        ("--parallel tensor", "tensor"),
    ],
)
def test_mistakes_on_the_command_line(capsys, tmp_path, arguments, shown):
    assert cli.main(["train", "digits", *arguments.split(), "--out", str(tmp_path / "run")]) == 2
    assert shown in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


# Shares of a batch, and samples that go straight to disk --------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"source": "digits", "flip": True}, {"source": "spiral"}, {"source": "spiral", "stream": True}]
)
def test_processes_read_their_rows_of_every_batch(options):
    """Bit for bit those of the whole batch, from any step on, in stacks too."""
    source = data.open_source(options.pop("source"))
    options |= {"shape": (2,) if isinstance(source, data.PointSource) else (8, 8, 1), "batch_size": 8}
    for more in ({}, {"start_step": 3}, {"stacked": 2}):
        for rows in ([0, 1, 2, 3], [1, 4, 7]):
            read = functools.partial(data.Reading, num_threads=0, **more)
            whole = data.batches(source, **options, reading=read())
            part = data.batches(source, **options, reading=read(rows=np.array(rows)))
            for _ in range(5):
                expected, found = next(whole), next(part)
                for name in ("x_0", "label"):
                    taken = np.take(expected[name], rows, axis=int("stacked" in more))
                    np.testing.assert_array_equal(found[name], taken)


def test_an_archive_is_what_numpy_writes(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 3, 3, 1), np.uint8), np.arange(7, dtype=np.int32)
    names = np.array(["cat", "dog"])
    with NpzWriter(tmp_path / "a.npz", "images", images.shape, np.uint8, {"labels": labels, "names": names}) as archive:
        for start in (0, 3, 6):
            archive.append(images[start : start + 3])
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found.files == ["images", "labels", "names"]
        for name, expected in (("images", images), ("labels", labels), ("names", names)):
            assert found[name].dtype == expected.dtype
            np.testing.assert_array_equal(found[name], expected)


def test_samples_go_straight_to_disk(finished_run, tmp_path, monkeypatch):
    """Of 130 drawn 30 at a time, no more than a batch and the hundred of the picture are ever held; the file has them all."""
    run = open_run(finished_run)
    given = run.labels(130)
    drawing = samples.Drawing(run, run.config.sample, batch_size=30)
    together = drawing.draw(given, 130)
    drawn, paths = samples.draw_and_save(tmp_path, drawing, given, 130, heading=lambda _: "")
    assert len(drawn.values) == len(drawn.labels) == samples.SHOWN == 100
    assert [path.name for path in paths] == ["samples.npz", "samples.png"]
    with np.load(paths[0]) as found:
        np.testing.assert_array_equal(found["images"], together.values)
        np.testing.assert_array_equal(found["labels"], given)


@pytest.mark.slow
def test_eight_devices_draw_and_measure_what_one_does(finished_run, tmp_path):
    """`ddpm sample` in batches that eight does not divide, and the likelihood, bit for bit but for rounding."""
    shutil.copytree(finished_run, tmp_path / "run")
    found = []
    for count in (1, 8):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}",
        }
        for arguments in (["sample", "--batch-size", "5"], ["evaluate", "--likelihood", "--batch-size", "6"]):
            name, *options = arguments
            command = [sys.executable, "-m", "ddpm_jax", name, str(tmp_path / "run"), "--num", "12", *options]
            assert subprocess.run(command, env=environment).returncode == 0
        with np.load(tmp_path / "run" / "samples" / "samples.npz") as archive:
            found.append((archive["images"].astype(int), archive["labels"]))
        found[-1] += (json.loads((tmp_path / "run" / "likelihood.json").read_text())["bits_per_dim"],)
    one, eight = found
    assert np.abs(one[0] - eight[0]).max() <= 1 and one[2] == pytest.approx(eight[2], rel=1e-5)
    np.testing.assert_array_equal(one[1], eight[1])


# Several processes ----------------------------------------------------------------------------------------------


def start(*arguments, processes=2):
    command = [sys.executable, str(LOCAL), "--processes", str(processes), "--", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_two_processes_are_one(finished_run, tiny, tmp_path):
    """Two processes of one device each get as far in four steps as one process does, and leave what it would have left."""
    folder, few = tmp_path / "run", ["--train.steps", "4", "--train.sample-every", "0", "--sample.steps", "1"]
    process = start("train", "digits", *tiny, *few, "--out", folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "devices: 2 of 2 processes, data parallel, 4 examples on each" in err and out.count("trained to step 4") == 1
    assert {path.name for path in folder.iterdir()} == {path.name for path in finished_run.iterdir()} - {"samples"}
    found, expected = read_metrics(folder), read_metrics(finished_run)[:2]
    assert [line["step"] for line in found] == [2, 4]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in found], [line[name] for line in expected], rtol=1e-4)
    states = state_in(folder, 4), state_in(finished_run, 4)
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(
            a, b, atol=1e-4
        )  # Adam's first steps are of the learning rate's size, whatever the gradient
    run = open_run(folder)
    drawn = samples.Drawing(run, run.config.sample).draw(run.labels(10), 10, num_frames=samples.FRAMES)
    with np.load(folder / "samples.npz") as archive:
        assert np.abs(archive["images"].astype(int) - drawn.values).max() <= 1


def test_different_options_are_named(monkeypatch):
    """Every process tells of all that differ, field by field; the transport between them is played here."""
    options = {"train": {"lr": 0.1, "steps": 3}, "data": {"classes": ("a", "b")}, "out": "x"}
    others = {"train": {"lr": 0.2, "steps": 3}, "data": {"classes": ("a",)}, "out": "x"}
    monkeypatch.setattr(launch, "several", lambda: True)
    monkeypatch.setattr(launch, "_from_first", lambda payload: json.dumps(options).encode())
    monkeypatch.setattr(launch, "_from_each", lambda payload: [b"", payload])
    launch.agree(options)
    with pytest.raises(UserError, match=r"train\.lr: 0\.1 in process 0, 0\.2 in") as caught:
        launch.agree(others)
    assert "data.classes: ['a', 'b'] in process 0, ['a'] in" in str(caught.value) and "steps" not in str(caught.value)


@pytest.mark.slow
def test_processes_with_different_options_are_refused(tiny, tmp_path):
    """Field by field, in every process, before the folder is touched; whichever of the launcher's ends first, the other follows."""
    code = (
        "import os, sys; from ddpm_jax.cli import main\n"
        "rate = ['0.01', '0.02'][int(os.environ['JAX_PROCESS_ID'])]\n"
        "sys.exit(main([*sys.argv[1:], '--train.lr', rate]))"
    )
    found = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "train", "digits", *tiny, "--out", str(tmp_path / "run")]
    both = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | found | {"JAX_PROCESS_ID": str(i)}
        )
        for i in range(2)
    ]
    for process in both:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 2 and "Traceback" not in err
        assert "train.lr: 0.01 in process 0, 0.02 in process 1" in err and err.count(" in process 1") == 1
    assert not (tmp_path / "run").exists()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize("process", ["0", "1"])
def test_processes_that_do_not_come(tmp_path, process):
    """Neither the coordinator nor the others are there: the address is named once the timeout is over."""
    address = f"127.0.0.1:{free_port()}"
    options = ["--parallel.coordinator", address, "--parallel.processes", "2", "--parallel.process-id", process]
    command = [sys.executable, "-m", "ddpm_jax", "train", "digits", "--out", str(tmp_path / "run"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--parallel.timeout", "1"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and f"not to be found at {address} within 1 s (--parallel.timeout)" in done.stderr
    assert "Traceback" not in done.stderr and "Check failure" not in done.stderr


def test_the_launcher_ends_the_others_when_one_fails(tmp_path):
    """Process 1 has no such file; process 0 would wait for it."""
    code = "import os, sys, time; sys.exit(3) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(60)"
    fake = tmp_path / "ddpm_jax"
    fake.mkdir()
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(code)
    command = [sys.executable, str(LOCAL), "--", "train"]
    done = subprocess.run(command, cwd=tmp_path, timeout=60)
    assert done.returncode == 3


@pytest.mark.slow
def test_two_processes_stop_together(tiny, tmp_path):
    """Ctrl-C reaches both; both stop at the same step, save it once and say how to go on; two go on, fully sharded."""
    folder, options = tmp_path / "run", [*tiny, "--train.steps", "5000", "--train.sample-every", "0"]
    process = start("train", "digits", *options, "--out", folder)
    for line in process.stderr:
        if line.startswith("step 4/"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    step = int(re.search(r"interrupted; step (\d+) is saved", err)[1])
    assert read_metrics(folder)[-1]["step"] == step
    more = ["--train.steps", str(step + 4), "--parallel", "fsdp", "--parallel.min-shard", "16", "--resume"]
    process = start("train", "digits", *options, *more, "--out", folder)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"step {step} to {step + 4}" in out and "fully sharded data parallel" in out
    process = start("sample", folder, "--num", "30", "--batch-size", "20", "--out", tmp_path / "samples")
    assert process.wait(timeout=200) == 0
    with np.load(tmp_path / "samples" / "samples.npz") as archive:
        assert archive["images"].shape == (30, 8, 8, 1)
    tuned = ["--data.classes", "3", "8", "--train.steps", "2", "--out", tmp_path / "tuned"]
    process = start("finetune", folder, *tuned)
    assert process.wait(timeout=200) == 0
    assert open_run(tmp_path / "tuned").load_variables()[1] == 2
