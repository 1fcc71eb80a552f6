"""Which weights `ddpm import` and `ddpm convert` take, and that they say so: averaged or not, whole or in shards, of a variant."""

import fnmatch
import itertools
import json
import shutil

import numpy as np
import pytest
from test_importing import MODEL, WEIGHTS, imported, openai_model, random_tensors, refused, same, sha256

from ddpm_jax import schedules, weights
from ddpm_jax.cli import main
from ddpm_jax.training.run import open_run

pytest.importorskip("safetensors")

TRAINED, AVERAGED = random_tensors(MODEL, 1), random_tensors(MODEL, 2)
BOOKKEEPING = {
    "decay": 0.9999,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 500,
    "power": 0.75,
    "update_after_step": 0,
    "use_ema_warmup": True,
}
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}


def network(folder, tensors, name=WEIGHTS, **config):
    """A network's folder as diffusers writes it; returns its tensors under their names there."""
    folder.mkdir(parents=True, exist_ok=True)
    options, theirs = weights.to_diffusers(MODEL, tensors)
    (folder / "config.json").write_text(json.dumps(options | config))
    if name is not None:
        weights.write_tensors(folder / name, theirs)
    return theirs


@pytest.fixture
def trained(tmp_path):
    """What a training script leaves: a checkpoint of both within the folder of the pipeline, whose scheduler it shares."""
    folder = tmp_path / "out"
    network(folder / "checkpoint-500" / "unet", TRAINED)
    network(folder / "checkpoint-500" / "unet_ema", AVERAGED, **BOOKKEEPING)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder / "checkpoint-500"


@pytest.mark.parametrize("choice", [None, "ema", "params"])
def test_the_average_of_a_training_folder_unless_told_otherwise(trained, tmp_path, capsys, choice):
    run = imported(trained, tmp_path, *([] if choice is None else ["--weights", choice]))
    out = capsys.readouterr().out
    same(run, TRAINED if choice == "params" else AVERAGED)
    assert run.origin["weights"] == (choice or "ema") and run.weights_at(0) == (choice or "ema")
    part = "unet" if choice == "params" else "unet_ema"
    assert run.origin["sha256"] == {
        name: sha256(trained.parent / name)
        for name in (
            f"checkpoint-500/{part}/config.json",
            f"checkpoint-500/{part}/{WEIGHTS}",
            "scheduler/scheduler_config.json",
        )
    }
    assert run.config.process.schedule == schedules.cosine(100)
    told = "those being trained, not averaged" if choice == "params" else "averaged"
    assert f"weights: {told} (checkpoint-500/{part}/{WEIGHTS})\n" in out


def test_what_is_said_of_an_import(trained, tmp_path, capsys):
    imported(trained, tmp_path)
    count = sum(array.size for array in AVERAGED.values())
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "run"),
        f"  network: unet of diffusers, {count:,} parameters, 8x8x1",
        f"  weights: averaged (checkpoint-500/unet_ema/{WEIGHTS})",
        "  noise: cosine, 100 steps",
        "  prediction: eps",
        "  sampler: ancestral, 100 steps, spacing leading, variance posterior, x_0 clipped at 1",
    ]


def test_without_a_scheduler_that_is_said(tmp_path, capsys):
    network(tmp_path / "alone", TRAINED)
    run = imported(tmp_path / "alone", tmp_path)
    out = capsys.readouterr().out
    assert run.origin["weights"] is None and run.weights_at(0) == "unknown"
    assert f"weights: the files do not say which ({WEIGHTS})\n" in out
    assert "betas from 0.0001 to 0.02 (no scheduler_config.json there: as in Ho et al. 2020)\n" in out


@pytest.mark.parametrize("part", ["unet", "unet_ema"])
def test_a_folder_that_is_named_is_the_one_that_is_taken(trained, tmp_path, part):
    run = imported(trained / part, tmp_path)
    same(run, AVERAGED if part == "unet_ema" else TRAINED)
    assert run.origin["weights"] == ("ema" if part == "unet_ema" else "params")
    assert run.config.process.schedule.name == "cosine"


def test_an_average_is_known_by_its_config(tmp_path):
    network(tmp_path / "renamed", AVERAGED, **BOOKKEEPING)
    assert imported(tmp_path / "renamed", tmp_path).origin["weights"] == "ema"


def test_weights_that_are_not_there_are_refused(trained, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    error = refused(["import", str(trained / "unet"), "--weights", "ema", *out], capsys)
    assert "--weights ema" in error and "holds weights that are not averaged" in error
    error = refused(["import", str(trained / "unet_ema"), "--weights", "params", *out], capsys)
    assert "--weights params" in error and "holds averaged weights alone" in error
    for path in (trained / "unet").iterdir():
        path.unlink()
    (trained / "unet").rmdir()
    error = refused(["import", str(trained), "--weights", "params", *out], capsys)
    assert "holds averaged weights alone (unet_ema)" in error
    network(tmp_path / "alone", TRAINED)
    error = refused(["import", str(tmp_path / "alone"), "--weights", "ema", *out], capsys)
    assert "does not say whether its weights are averaged" in error
    assert not (tmp_path / "run").exists()
    assert imported(trained, tmp_path).origin["weights"] == "ema"  # the average alone is taken


# Shards and variants


def sharded(folder, tensors, suffix, index, shard):
    """The network's weights in two shards; returns the index's path."""
    theirs = network(folder, tensors, name=None)
    names = sorted(theirs)
    parts = {shard.format(1): names[::2], shard.format(2): names[1::2]}
    for file, keys in parts.items():
        weights.write_tensors(folder / file, {key: theirs[key] for key in keys})
    where = {key: file for file, keys in parts.items() for key in keys}
    path = folder / index
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return path


@pytest.mark.parametrize(
    ("suffix", "index", "shard"),
    [
        ("safetensors", "{}.safetensors.index.json", "{}-0000{{}}-of-00002.safetensors"),
        ("bin", "{}.bin.index.json", "{}-0000{{}}-of-00002.bin"),
        ("safetensors", "{}.safetensors.index.fp16.json", "{}-0000{{}}-of-00002.fp16.safetensors"),
        ("safetensors", "{}.safetensors.index.fp16.json", "{}.fp16-0000{{}}-of-00002.safetensors"),
    ],
)
def test_shards(tmp_path, suffix, index, shard):
    if suffix == "bin":
        pytest.importorskip("torch")
    stem = "diffusion_pytorch_model"
    folder = tmp_path / "sharded"
    path = sharded(folder, TRAINED, suffix, index.format(stem), shard.format(stem))
    run = imported(folder, tmp_path)
    same(run, TRAINED)
    read = [path.name, shard.format(stem).format(1), shard.format(stem).format(2)]
    assert run.origin["sha256"] == {name: sha256(folder / name) for name in ["config.json", *read]}


def test_shards_that_do_not_agree_with_their_index(tmp_path, capsys):
    folder, out = tmp_path / "sharded", ["--out", str(tmp_path / "run")]
    names = "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-0000{}-of-00002.safetensors"
    path = sharded(folder, TRAINED, "safetensors", *names)
    whole = json.loads(path.read_text())
    second = folder / names[1].format(2)
    moved = second.rename(tmp_path / "second")
    error = refused(["import", str(folder), *out], capsys)
    assert f"needs {second.name}, which is not there" in error
    moved.rename(second)
    key = next(key for key, file in whole["weight_map"].items() if file == second.name)
    for weight_map, named in (
        ({k: f for k, f in whole["weight_map"].items() if k != key}, f"does not agree with {second.name}"),
        (whole["weight_map"] | {key: "../second"}, "names files outside its folder: ../second"),
        ([], "has no weight_map"),
    ):
        path.write_text(json.dumps({"weight_map": weight_map}))
        assert named in refused(["import", str(folder), *out], capsys)


def test_a_variant_alone_is_taken(tmp_path, capsys):
    folder = tmp_path / "half"
    theirs = network(folder, TRAINED, name=None)
    name = "diffusion_pytorch_model.fp16.safetensors"
    weights.write_tensors(folder / name, {key: array.astype(np.float16) for key, array in theirs.items()})
    run = imported(folder, tmp_path)
    same(run, {key: array.astype(np.float16).astype(np.float32) for key, array in TRAINED.items()})
    assert f"({name})" in capsys.readouterr().out


def test_variants_are_chosen_and_named(tmp_path, capsys):
    folder, out = tmp_path / "several", ["--out", str(tmp_path / "other")]
    theirs = network(folder, AVERAGED, name="diffusion_pytorch_model.fp16.safetensors")
    weights.write_tensors(folder / "diffusion_pytorch_model.bf16.safetensors", theirs)
    error = refused(["import", str(folder), *out], capsys)
    assert "holds weights of the variants bf16, fp16: pass --variant" in error
    error = refused(["import", str(folder), "--variant", "fp8", *out], capsys)
    assert "holds no weights of the variant fp8; there are weights of the variants bf16, fp16" in error
    same(imported(folder, tmp_path, "--variant", "fp16"), AVERAGED)


def test_the_variant_that_is_not_averaged(tmp_path, capsys):
    folder = tmp_path / "both"
    network(folder, AVERAGED)
    network(folder, TRAINED, name="diffusion_pytorch_model.non_ema.safetensors")
    run = imported(folder, tmp_path)
    same(run, AVERAGED)
    assert run.origin["weights"] == "ema"
    raw = imported(folder, tmp_path / "raw", "--weights", "params")
    same(raw, TRAINED)
    assert raw.origin["weights"] == "params"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_numbers_that_numpy_does_not_know(tmp_path, suffix):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    folder = tmp_path / "brief"
    theirs = network(folder, TRAINED, name=None)
    brief = {key: torch.from_numpy(array).bfloat16() for key, array in theirs.items()}
    (save_file if suffix == "safetensors" else torch.save)(brief, folder / f"diffusion_pytorch_model.{suffix}")
    run = imported(folder, tmp_path)
    same(run, {key: torch.from_numpy(array).bfloat16().float().numpy() for key, array in TRAINED.items()})


def test_what_is_there_instead_is_named(tmp_path, capsys):
    folder = tmp_path / "flax"
    network(folder, TRAINED, name=None)
    (folder / "diffusion_flax_model.msgpack").write_bytes(b"")
    (folder / "diffusion_pytorch_model-00001-of-00002.bin").write_bytes(b"")
    error = refused(["import", str(folder), "--out", str(tmp_path / "run")], capsys)
    assert (
        "or an index of shards, is needed. There are diffusion_flax_model.msgpack, diffusion_pytorch_model-00001"
        in error
    )


def test_the_hub_is_asked_for_what_is_needed(trained, tmp_path, monkeypatch):
    """Of a repository with everything: the plain weights, or the variant that is asked for, of both networks; nothing else."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    repository, copy = trained, tmp_path / "snapshots" / "commit"
    for part in ("unet", "unet_ema"):
        (repository / part / "diffusion_pytorch_model.fp16.safetensors").write_bytes(
            (repository / part / WEIGHTS).read_bytes()
        )
        (repository / part / "optimizer.bin").write_bytes(b"-")

    def download(name, revision, allow_patterns):
        for path in repository.rglob("*"):
            relative = path.relative_to(repository)
            if path.is_file() and any(fnmatch.fnmatch(str(relative), pattern) for pattern in allow_patterns):
                (copy / relative).parent.mkdir(parents=True, exist_ok=True)
                (copy / relative).write_bytes(path.read_bytes())
        return str(copy)

    runs = itertools.count()

    def fetched(*options):
        run = imported("someone/something", tmp_path / str(next(runs)), *options)
        same(run, AVERAGED)
        names = {path.name for path in copy.rglob("*") if path.is_file()}
        shutil.rmtree(copy)
        return names - {"config.json"}

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetched() == {WEIGHTS}
    assert fetched("--variant", "fp16") == {"diffusion_pytorch_model.fp16.safetensors"}
    for part in ("unet", "unet_ema"):
        (repository / part / WEIGHTS).unlink()
    assert fetched() == {"diffusion_pytorch_model.fp16.safetensors"}
    for part, tensors in (("unet", TRAINED), ("unet_ema", AVERAGED)):
        (repository / part / "diffusion_pytorch_model.fp16.safetensors").unlink()
        names = "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-0000{}-of-00002.safetensors"
        sharded(repository / part, tensors, "safetensors", *names)
    assert fetched() == {names[0], names[1].format("1"), names[1].format("2")}


# Files


@pytest.mark.parametrize(("name", "which"), [("ema_0.9999_200", "ema"), ("model200", "params"), ("mine", None)])
def test_what_the_name_of_a_checkpoint_of_openai_says(tmp_path, monkeypatch, capsys, name, which):
    monkeypatch.setattr(weights.openai, "GROUPS", 4)
    model = openai_model(MODEL)
    path = weights.write_tensors(tmp_path / f"{name}.safetensors", weights.to_openai(model, random_tensors(model)))
    options = ["--image-size", "8", "--openai.head-dim", "4"]
    assert imported(path, tmp_path, *options).origin["weights"] == which
    for asked in {"ema", "params"} - {which}:
        error = refused(["import", str(path), "--out", str(tmp_path / "x"), "--weights", asked, *options], capsys)
        assert f"--weights {asked}: {path}" in error


@pytest.fixture
def both(tmp_path):
    """A file that holds a network and its average, as many training scripts write it."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "0050000.pt"
    model = openai_model(MODEL)
    parts = {"model": random_tensors(model, 1), "ema": random_tensors(model, 2)}
    as_torch = {
        name: {key: torch.from_numpy(a) for key, a in weights.to_openai(model, tensors).items()}
        for name, tensors in parts.items()
    }
    torch.save(as_torch | {"opt": {"state": {}}}, path)
    return path


@pytest.mark.parametrize("choice", [None, "ema", "params"])
def test_a_file_that_holds_both(both, tmp_path, monkeypatch, choice):
    monkeypatch.setattr(weights.openai, "GROUPS", 4)
    options = ["--image-size", "8", "--openai.head-dim", "4", *([] if choice is None else ["--weights", choice])]
    run = imported(both, tmp_path, *options)
    same(run, random_tensors(openai_model(MODEL), 1 if choice == "params" else 2))
    assert run.origin["weights"] == (choice or "ema")


@pytest.mark.parametrize("choice", [None, "params"])
def test_convert_says_which_of_both_it_takes(tmp_path, capsys, choice):
    torch = pytest.importorskip("torch")
    source, target = tmp_path / "both.pt", tmp_path / "run"
    parts = {"model": TRAINED, "ema": AVERAGED}
    torch.save({name: {k: torch.from_numpy(a) for k, a in part.items()} for name, part in parts.items()}, source)
    network = ["--network", "unet", "--model.image-size", "8", "--model.channels", "1", "--model.dim", "8"]
    network += ["--model.dim-mults", "1", "--model.num-blocks", "1"]
    network += ["--model.head-dim", "4", "--model.norm-groups", "4"]
    assert main(["convert", str(source), str(target), *network, *(["--weights", choice] if choice else [])]) == 0
    out = capsys.readouterr().out
    assert ("the weights being trained are taken" if choice else "the averaged weights are taken") in out
    run = open_run(target)
    same(run, TRAINED if choice else AVERAGED)
    assert run.origin == {"source": str(source), "weights": choice or "ema"}
    torch.save({"ema": {k: torch.from_numpy(a) for k, a in AVERAGED.items()}}, source)
    arguments = ["convert", str(source), str(tmp_path / "x.npz"), "--weights", "params"]
    assert "holds averaged weights alone ('ema')" in refused(arguments, capsys)


@pytest.mark.slow
def test_an_ema_of_denoising_diffusion_saved_alone(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from test_importing_denoising_diffusion import diffusion, tensors_of, unet
    from test_importing_denoising_diffusion import same as same_unet

    path = tmp_path / "ema.pt"
    averaged = tensors_of(diffusion(unet(seed=2), prefix="ema_model."))
    torch.save(averaged | tensors_of(diffusion(unet(seed=1), prefix="online_model.")), path)
    for choice, seed in (("ema", 2), ("params", 1)):
        run = imported(path, tmp_path / choice, "--image-size", "8", "--weights", choice)
        same_unet(run, seed)
        assert run.origin["weights"] == choice
    torch.save(averaged, path)
    arguments = ["import", str(path), "--out", str(tmp_path / "x"), "--image-size", "8", "--weights", "params"]
    assert "holds averaged weights alone" in refused(arguments, capsys)


def test_samples_and_figures_say_which_weights_they_are_of(trained, tmp_path, capsys):
    run = imported(trained, tmp_path, "--weights", "params", "--data", "digits")
    capsys.readouterr()
    assert main(["sample", str(run.folder), "--num", "1", "--steps", "1"]) == 0
    assert "1 samples by ancestral in 1 steps, weights not averaged:" in capsys.readouterr().out
    assert main(["evaluate", str(run.folder), "--likelihood", "--num", "2"]) == 0
    assert json.loads((run.folder / "likelihood.json").read_text())["weights"] == "params"
