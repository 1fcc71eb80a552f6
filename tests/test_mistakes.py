"""What goes wrong on the command line: each mistake gives status 2 and one line that says what is allowed, and changes nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_builders import write_image

from ddpm_jax import cli
from ddpm_jax.presets import preset
from ddpm_jax.training.run import Run, create_folder, open_run

MISTAKES = [
    # commands, and what they are of
    ("fly", "'fly'", "train, finetune, sample, edit, restore, plot"),
    ("trian digits --out OUT", "'trian'", r"Did you mean 'train'\?"),
    ("smaple RUN", r"Did you mean 'sample'\?"),
    ("--verbose", "'--verbose'", "the command must be one of train"),
    ("train", "needs a PRESET first"),
    ("train --out OUT", "needs a PRESET first"),
    ("finetune", "needs a RUN first"),
    ("sample", "needs a RUN first"),
    ("evaluate --num 5", "needs a RUN first"),
    ("edit", "needs a RUN first"),
    ("restore", "needs a RUN first"),
    ("plot", "needs a RUN first"),
    ("convert", "needs a IN OUT first"),
    ("average", "needs a RUN first"),
    ("average RUN --length 0.05", "Missing from ddpm average RUN: --out PATH|--out PATH"),
    ("average RUN --length 0.05 --out OUT", "keeps one average by a decay", "--train.ema-lengths 0.05 0.1"),
    ("average RUN --length 0.5 --out OUT", r"length must lie in \(0, 0.28\], .*got 0.5"),
    ("average NOWHERE --length 0.05 --out OUT", "NOWHERE"),
    ("sample RUN --weaker RUN", "needs a sample.guidance other than 1"),
    ("sample RUN --weaker NOWHERE --guidance 2", "NOWHERE"),
    ("train digits --out OUT --train.ema-lengths 0.5", r"ema_lengths must lie in \(0, 0.28\]; got \(0.5,\)"),
    ("import", "needs a SOURCE first"),
    ("train digit --out OUT", "'digit'", "digits, digits-flow, .*images", r"Did you mean 'digits'\?"),
    ("train RUN --out OUT", "the preset must be one of"),
    ("train xyzzy --out OUT", "the preset must be one of", "got 'xyzzy'"),
    # flags and their values
    ("train digits", r"Missing from ddpm train digits: --out PATH The run folder", "--help"),
    ("train digits --out", "Missing value for argument '--out'", "--help"),
    ("train digits --out=", "exists and is no run folder"),
    ("train digits -o OUT", "Unrecognized options: -o, OUT|Missing from ddpm train digits: --out PATH"),
    ("train digits OUT", "Missing from ddpm train digits: --out PATH"),
    ("train digits --out OUT more", "Unrecognized options: more"),
    ("train digits --out OUT --train.learning-rate 1", "Unrecognized options: --train.learning-rate, 1", "--help"),
    ("train digits --out OUT --train.stpes 3", "--train.stpes", r"Perhaps you meant: --train\.steps {None}\|INT"),
    ("train digits --out OUT --lr 1", "--lr", r"Perhaps you meant: --train\.lr FLOAT"),
    ("train digits --out OUT --batch_size 1", "--batch-size", r"Perhaps you meant: --train\.batch-size INT"),
    (
        "train digits --out OUT --train.steps many",
        r"parsing --train\.steps: .*'many'.* Usage: --train\.steps {None}\|INT\.",
    ),
    (
        "train digits --out OUT --train.steps 1.5",
        r"parsing --train\.steps: .*'1\.5'.* Usage: --train\.steps {None}\|INT\.",
    ),
    (
        "train digits --out OUT --train.steps --train.lr 1",
        "Missing value for argument '--train.steps'|Unrecognized options: 1",
    ),
    ("train digits --out OUT --train.lr fast", r"parsing --train\.lr: .* float: 'fast'\. Usage: --train\.lr FLOAT\."),
    ("train digits --out OUT --train.lr nan", r"train\.lr must be positive and finite; got nan"),
    (
        "train digits --out OUT --model.dim-mults 1 x",
        r"parsing --model\.dim-mults: .*'x'",
        r"Usage: --model\.dim-mults \[INT",
    ),
    ("train digits --out OUT --resume=yes", "--resume takes no value; got 'yes'"),
    ("train digits --out OUT --train.dtype float16", "'--train.dtype'", "'float32', 'bfloat16'", r"mean 'bfloat16'\?"),
    ("train digits --out OUT --process.schedule cosin", "one of .'linear', 'cosine'", r"Did you mean 'cosine'\?"),
    ("train digits --out OUT --process.schedule square", "'square'", "--process.schedule", "'linear', 'cosine'"),
    ("train digits --out OUT --sample.sampler ddmi", "'ancestral', 'ddim'", r"Did you mean 'ddim'\?"),
    ("train digits --out OUT --parallel fdsp", "'data', 'fsdp', 'pmap'", r"Did you mean 'fsdp'\?"),
    ("train digits --out OUT --parallel.devices 0", r"parallel\.devices must be at least 1; got 0"),
    (
        "import EMPTY --out OUT --openai.rescale-timesteps yes",
        "invalid choice 'yes' for argument '--openai.rescale-timesteps'",
        "'True'",
    ),
    ("train digits --out OUT --data.condition downsmaple:4", "downsample:FACTOR, gray, mask:PART", "mean 'downsample'"),
    ("train digits --out OUT --data.condition downsample:x", "condition must be one of .*; got 'downsample:x'"),
    ("train digits --out OUT --data.condition downsample:1", "at least 2 times smaller; got downsample:1"),
    ("train digits --out OUT --data.condition downsample:3", "an image_size that is divisible by 3; got 8 x 8 pixels"),
    ("train digits --out OUT --data.condition gray", "gray needs images in colour, of 3 channels; got 1"),
    ("train digits --out OUT --data.condition mask:midle", "one of left, .*; got mask:midle", r"mean 'middle'\?"),
    (
        "train digits --out OUT --data.condition mask:left --model.condition-channels 3",
        "model.condition_channels must be 2 for data.condition = mask:left, or 0, .*; got 3",
    ),
    ("train digits --out OUT --model.condition-channels 1", "condition_channels = 1 needs data.condition.*got None"),
    ("train digits --out OUT --model.condition-channels -1", "condition_channels must not be negative; got -1"),
    ("train spiral --out OUT --data.condition gray", "needs a network with condition_channels, .*; got mlp"),
    ("sample RUN --condition x.png", "a run that was trained with data.condition; RUN was trained without"),
    ("benchmark digits-upscale", "must be shown no condition; got digits-upscale with downsample:4"),
    ("train spiral --out OUT --model.image-size 8", "Unrecognized options: --model.image-size, 8"),
    # numbers out of range
    ("train digits --out OUT --train.lr -1", r"train\.lr must be positive and finite; got -1"),
    ("train digits --out OUT --train.lr -1e-3", r"train\.lr must be positive and finite; got -0\.001"),
    ("train digits --out OUT --train.lr inf", r"train\.lr must be positive and finite; got inf"),
    ("train digits --out OUT --train.steps 0", r"train\.steps must be at least 1, or None; got 0"),
    ("train digits --out OUT --train.steps 5 --train.epochs 2", "the other must be None; got 5 and 2"),
    ("train digits --out OUT --train.accumulate 3", r"must divide train\.batch_size = 64; got 3"),
    ("train digits --out OUT --train.ema-decay 1", r"train\.ema_decay must lie in \[0, 1\); got 1"),
    ("train digits --out OUT --train.seed -1", r"train\.seed must not be negative; got -1"),
    ("train digits --out OUT --train.steps 20", r"warmup_steps must be below the number of steps \(20\)"),
    ("train digits --out OUT --model.image-size 9", "image_size must be divisible by 2", "got 9"),
    ("train digits --out OUT --model.dim 6", "norm_groups must divide every width"),
    ("train digits --out OUT --sample.steps 1001", r"steps must lie in 1\.\.1000 .*; got 1001"),
    ("train digits --out OUT --data.scale unit", r"sample\.clip must be None; got 1"),
    ("train digits --out OUT --train.batch-size 2000", r"batch_size must lie in 1\.\.1797", "2000"),
    ("train digits --out OUT --model.num-classes 9", r"labels must lie in 0\.\.8", "label 9"),
    ("train digits --out OUT --model.num-classes 10 --data.no-labels", r"model\.num_classes = 10 needs labels"),
    ("train digits --out OUT --parallel.devices 99", "99"),
    # data
    ("train images --out OUT", r"--data\.source"),
    ("train images --out OUT --data.source nowhere", "'nowhere'", "digits, .*idx:PATH", "npz:PATH"),
    ("train images --out OUT --data.source digts", r"Did you mean 'digits'\?"),
    ("train images --out OUT --data.source fodler:MIXED", r"Did you mean 'folder'\?"),
    ("train images --out OUT --data.source folder:nowhere", "nowhere: no such folder", r"data\.source"),
    ("train images --out OUT --data.source zip:nowhere.zip", r"nowhere\.zip: no such file"),
    ("train images --out OUT --data.source npz:nowhere.npz", r"nowhere\.npz: no such file"),
    ("train images --out OUT --data.source idx:nowhere", "nowhere: no such file"),
    ("train images --out OUT --data.source hf:nowhere.parquet", r"nowhere\.parquet: no such file"),
    ("train images --out OUT --data.source hf-stream:./nowhere/x-*.parquet", "nowhere: no such file"),
    ("train images --out OUT --data.source webdataset:nowhere/{0..3}.tar", "nowhere: no such file"),
    (
        "train images --out OUT --data.source hf:NPZ.npz",
        "NPZ.npz: files of several or other kinds",
        r"\.parquet, \.arrow",
    ),
    (
        "train images --out OUT --data.source npz:NPZ.npz --data.label age",
        "data.label = 'age' is no column",
        "it has none",
    ),
    ("train digits --out OUT --data.label age", r"data\.label chooses one of several columns", "digits has none"),
    (
        "train digits --out OUT --train.trackers wadnb",
        r"train\.trackers must be among tensorboard, wandb",
        "Did you mean 'wandb'",
    ),
    ("train images --out OUT --data.source nowhere.npz", r"nowhere\.npz: no such file"),
    ("train images --out OUT --data.source EMPTY", "EMPTY: no images there", "jpg"),
    ("train images --out OUT --data.source MIXED", "MIXED: holds both images"),
    ("train images --out OUT --data.source npz:FILE", "FILE"),
    ("train images --out OUT --data.source npz:TWICE.npz", "names of classes must differ; 'cat' is there twice"),
    ("train images --out OUT --data.source npz:NPZ.npz --model.channels 2", r"channels must be 1 \(grey\) or 3"),
    ("train digits --out OUT --data.classes ten", "class 'ten' is none of", r"0, 1, 2"),
    ("train digits --out OUT --data.classes 10", "class '10' is none of"),
    ("train images --out OUT --data.source npz:CATS.npz --data.classes cta", r"Did you mean 'cat'\?"),
    ("train images --out OUT --data.source npz:CATS.npz --data.classes 2", r"cat, dog, or a position in 0\.\.1"),
    ("train spiral --out OUT --data.classes 1", "has no classes"),
    # where to
    ("train digits --out FILE/run", "FILE/run cannot be written to: .*FILE is a file, not a folder"),
    ("train digits --out FILE", "FILE exists and is no run folder"),
    ("train digits --out MIXED", "MIXED exists and is no run folder"),
    ("train digits --out RUN", "RUN exists. Pass --resume", "--overwrite", "another --out"),
    ("train digits --out OUT --resume", "OUT does not exist", "ddpm train PRESET --out"),
    ("train digits --out OUT --resume --overwrite", "exclude each other"),
    ("train digits --out RUN --resume --train.lr 0.5", r"train\.lr: 0\.01 in the run, 0\.5 now"),
    ("train digits --out RUN --resume --train.label-dropout 0.1", r"train\.label_dropout: 0\.0 in the run, 0\.1 now"),
    ("train digits --out RUN --resume --data.no-labels", r"data\.labels: True in the run, False now"),
    ("train digits --out RUN --resume --data.source spiral", "'spiral' holds points in the plane"),
    ("train spiral --out RUN --resume", "RUN is a run of the network unet, and ddpm train spiral is of mlp"),
    ("finetune RUN --out RUN", "choose another folder"),
    ("finetune RUN", "Missing from ddpm finetune RUN: --out PATH"),
    ("finetune RUN --out OUT --process.prediction eps", r"process\.prediction: 'v' in the run, 'eps' now"),
    ("finetune RUN --out OUT --weights average", "'average' for argument '--weights'", "'ema', 'params'"),
    ("finetune RUN --out OUT --data.source nowhere", "'nowhere' is not known"),
    ("finetune OUT --out OUT2", "OUT does not exist"),
    # runs
    ("sample OUT", "OUT does not exist", "ddpm train PRESET --out OUT"),
    ("sample FILE", "FILE is a file, and a run is a folder", "--out FOLDER"),
    ("sample EMPTY", r"EMPTY holds no config\.json", "--out FOLDER"),
    ("sample BROKEN", r"BROKEN/config\.json cannot be read: Expecting"),
    ("sample FORMAT", "has format 99; this version of ddpm-jax reads the formats 2 to 4"),
    ("sample BARE", r"config\.json cannot be read: 'config' is missing"),
    ("sample UNKNOWN", r"model has no option 'dimm'", r"Did you mean 'dim'\?"),
    ("sample TYPE", r"model\.dim must be a whole number; got 'four'"),
    ("sample RANGE", r"RANGE/config\.json cannot be read: dim must be at least 1; got -4"),
    ("sample NETWORK", "got 'unett'", r"Did you mean 'unet'\?"),
    (
        "sample WIDTH",
        r"does not fit the run's config\.json: params\.class_embed\.embedding is \(10, 16\) in it, and by the config \(10, 32\)",
    ),
    ("evaluate WIDTH --likelihood --num 10", r"does not fit the run's config\.json: params\."),
    ("convert WIDTH OUT.npz", r"does not fit the run's config\.json: params\."),
    ("sample NEW", "holds no checkpoint yet; train it first"),
    ("sample RUN extra", "Unrecognized options: extra"),
    ("sample RUN --labels 3 ten", "class 'ten' is none of", "10 classes: 0, 1, 2"),
    ("sample RUN --labels 10", "class '10' is none of"),
    ("sample RUN --labels -1", "class '-1' is none of"),
    ("sample CATS --labels cta", r"Did you mean 'cat'\?"),
    ("sample CATS --labels 2", r"2 classes: cat, dog, or a position in 0\.\.1"),
    ("sample SOME --labels 0", "class '0' is none of", "3 classes: 3, 7, cat"),
    ("sample POINTS --labels 1", "trained without classes"),
    ("sample RUN --num 0", "num must be at least 1; got 0"),
    ("sample RUN --batch-size 0", "batch_size must be at least 1; got 0"),
    ("sample RUN --sampler eulers", "'ancestral', 'ddim'", "'eulers'", r"Did you mean 'euler'\?"),
    ("sample RUN --steps 0", "steps must be at least 1; got 0"),
    ("sample RUN --steps 21", r"steps must lie in 1\.\.20 .*; got 21"),
    ("sample RUN --eta 2", r"eta must lie in \[0, 1\]; got 2"),
    ("sample RUN --guidance -1", "guidance must not be negative; got -1"),
    ("sample RUN --guidance 2", "guidance"),
    ("sample RUN --variance gamma", "--variance belongs to --sampler ancestral; got ddim"),
    (
        "sample RUN --sampler ancestral --variance gamma",
        "'gamma' for argument '--variance'",
        "'beta', 'posterior', 'learned'",
    ),
    ("sample RUN --spacing log_snt", r"Did you mean 'log_snr'\?"),
    ("sample RUN --out FILE", "FILE is a file, not a folder"),
    ("sample RUN --out FILE/below", "FILE/below cannot be written to: .*FILE is a file"),
    # evaluating, editing, plotting
    ("evaluate OUT", "OUT does not exist"),
    ("evaluate RUN --num 5", "at least 10, one sample for each class; got 5"),
    ("evaluate RUN --batch-size 0", "batch_size must be at least 1; got 0"),
    ("evaluate RUN --fid --likelihood", "--likelihood and --fid are two evaluations"),
    ("evaluate RUN --fid-weights FILE", "belong to --fid, which is not given"),
    ("evaluate RUN --num-real 3", "num_real must be at least 10; got 3"),
    ("evaluate RUN --likelyhood", "Perhaps you meant: --likelihood"),
    ("edit RUN inpaint --mask lef", "left, right, top, bottom, middle", "'lef'", r"Did you mean 'left'\?"),
    ("edit RUN inpaint --mask nowhere.png", "left, right, top, bottom, middle, or an image file; got 'nowhere.png'"),
    ("edit RUN inpaint --mask FILE", "FILE: not a readable image"),
    (
        "edit RUN inpant",
        "'inpant' for argument 'kind'",
        "'inpaint', 'vary', 'interpolate'",
        r"Did you mean 'inpaint'\?",
    ),
    ("edit RUN vary --strength 0", "strength", "0"),
    ("edit RUN vary --images nowhere.png", "nowhere.png"),
    ("edit RUN vary --labels twelve", "class 'twelve' is none of"),
    ("edit RUN interpolate --images MIXED/a.png", "interpolate needs at least 2 images; got 1"),
    ("edit POINTS vary", "edits are of images, and POINTS is of points"),
    (
        "restore RUN --operator blurr:2",
        "operator must be one of mask, blur, downsample, gray; got 'blurr'",
        r"mean 'blur'\?",
    ),
    ("restore RUN --operator blur:wide", "operator blur:SIGMA needs a number; got 'wide'"),
    ("restore RUN --operator blur:0", "sigma must be positive and finite; got 0"),
    ("restore RUN --operator downsample:3", "factor must divide the size of the image, 8 x 8; got 3"),
    ("restore RUN --operator gray", "weights must be one for each channel, of which x .* has 1; got 3"),
    ("restore RUN --operator mask:lef", "left, right, top, bottom, middle", r"Did you mean 'left'\?"),
    (
        "restore RUN MIXED/a.png --operator downsample:4",
        "a measurement by downsample:4 must be 2 x 2 in grey; got",
        "--degrade",
    ),
    ("restore RUN FILE", "FILE: not a readable image"),
    ("restore RUN --noise -1", "noise must be 0 or more, and finite; got -1"),
    ("restore RUN --method mps", "mmps", "pigdm", "dps", r"Did you mean 'mmps'\?"),
    ("restore RUN --scale 3", "--scale belongs to --method dps; got mmps"),
    ("restore RUN --method dps --scale -1", "scale must be 0 or more, and finite; got -1"),
    ("restore POINTS", "what is restored are images, and POINTS is of points"),
    ("plot OUT", "OUT does not exist"),
    ("plot RUN smaples", "samples, animation", r"Did you mean 'samples'\?"),
    ("plot RUN --num 0", "num must be at least 1; got 0"),
    ("plot POINTS walk", "the picture walk is of images"),
    ("plot RUN --out FILE/x", "FILE is a file, not a folder"),
    # weights
    ("convert RUN", "needs an OUT after IN"),
    ("convert RUN --to diffusers", "needs an OUT after IN"),
    ("convert OUT OUT.npz", "OUT does not exist; ddpm convert takes a run folder, or a file of weights"),
    ("convert RUN FILE/w.npz", "FILE cannot be written to: .*FILE is a file, not a folder"),
    ("convert RUN OUT.xyz", "OUT.xyz: weights must be one of"),
    ("convert RUN OUT", "RUN is a run folder already; convert it to one of"),
    ("convert FILE OUT.npz", "FILE: weights must be one of"),
    ("convert NPZ.npz OUT", "pass --network, one of annotated_unet"),
    ("convert NPZ.npz OUT --network unett", r"Did you mean 'unet'\?"),
    ("convert NPZ.npz OUT --network", "Missing value for argument '--network'"),
    ("convert RUN OUT --to difusers", "'--to'. Expected one of .*'None'.*", r"Did you mean 'diffusers'\?"),
    ("convert POINTS OUT --to diffusers", "takes the weights of a unet; of POINTS it would be a mlp"),
    ("convert RUN OUT.onxn", "OUT.onxn: weights must be one of .*; .onnx and .stablehlo"),
    ("convert RUN OUT.onnx --steps 5", "Unrecognized options: --steps, 5", "ddpm convert RUN OUT.onnx --help"),
    ("convert RUN OUT.onnx --weights state", "'state' for argument '--weights'", "'ema', 'params'"),
    ("convert RUN OUT.stablehlo --to diffusers", "Unrecognized options: --to, diffusers"),
    ("convert RUN OUT.stablehlo --what walk", "'walk' for argument '--what'", "'sample', 'denoise'"),
    ("convert RUN OUT.stablehlo --what denoise --steps 3", "steps belongs to what = sample", "got 3"),
    ("convert RUN OUT.stablehlo --steps 21", r"steps must lie in 1\.\.20 .*; got 21"),
    ("convert RUN OUT.stablehlo --sampler ddmi", r"Did you mean 'ddim'\?"),
    ("convert RUN OUT.stablehlo --stretch", "stretch is done to samples that are drawn"),
    ("convert NEW OUT.stablehlo", "holds no checkpoint yet; train it first"),
    ("convert NEW OUT.onnx", "holds no checkpoint yet; train it first"),
    ("convert EMPTY OUT.onnx", r"EMPTY holds no config\.json, so it is no run folder"),
    ("convert NPZ.npz OUT.onnx", r"\.onnx is made of a run folder; NPZ\.npz is a file", "--network NAME"),
    ("convert OUT OUT.stablehlo", "OUT does not exist; ddpm convert takes a run folder"),
    ("import nowhere --out OUT", "nowhere does not exist, and is no id of the Hub"),
    ("import /no/where --out OUT", "/no/where does not exist"),
    ("import EMPTY", "Missing from ddpm import EMPTY: --out PATH The run folder"),
    ("import EMPTY --out OUT", "is no folder of diffusers"),
    ("import EMPTY --out RUN", "RUN exists; choose another --out"),
    ("import EMPTY --out FILE/x", "FILE is a file, not a folder"),
    ("import RUN --out OUT --revision main", "--revision belongs to a repository of the Hub"),
    ("import NPZ.npz --out OUT --variant fp16", "--variant belongs to a folder of diffusers"),
    ("import EMPTY --out OUT --openai.schedule linaer", r"Did you mean 'linear'\?"),
    # the two frameworks
    ("verify tiny-unet", "the network must be one of", r"Did you mean 'tiny_unet'\?"),
    ("verify EMPTY", r"EMPTY holds no config\.json"),
    ("verify tiny_unet --dtype float16", "'float16' for argument '--dtype'", "'float64', 'float32'"),
    ("verify --weights FILE", "needs the name of the one network"),
    ("verify tiny_unet --out FILE/x", "FILE is a file, not a folder"),
    ("benchmark tiny-unet", r"Did you mean 'tiny_unet'\?"),
    ("benchmark tiny_unet --what fly", "'fly' for argument '--what'", "'forward', 'train', 'sample'"),
    ("benchmark tiny_unet --seconds 0", "seconds must be positive; got 0"),
    ("benchmark tiny_unet --batch-size 0", "batch_size must be at least 1"),
    ("benchmark tiny_unet --out FILE", "FILE is a file, not a folder"),
    ("compile digits", "Missing from ddpm compile digits: --topology"),
    ("compile digit --topology v5e:1x1", "Did you mean 'digits'"),
    ("compile digits --topology v5:1x1", "with a chip of v5e, .*; got 'v5:1x1'"),
    ("compile digits --topology h100:3", "h100 comes as h100:1, .*; got 'h100:3'"),
    ("doctor --seconds 0", "seconds must be positive; got 0"),
    ("doctor --seconds many", "parsing --seconds: .*'many'"),
    ("doctor --folder FILE", "FILE is a file, not a folder"),
    ("doctor here", "Unrecognized options: here"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, finished_run):
    """A folder with all that the command lines name, save OUT, which none of them may make."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "EMPTY").mkdir()
    (folder / "FILE").write_text("a file")
    write_image(folder / "MIXED/a.png", np.zeros((8, 8), np.uint8))
    write_image(folder / "MIXED/cats/b.png", np.zeros((8, 8), np.uint8))
    images, labels = np.zeros((100, 32, 32, 3), np.uint8), np.arange(100) % 2
    np.savez(folder / "NPZ.npz", images=images)
    np.savez(folder / "CATS.npz", images=images, labels=labels, class_names=["cat", "dog"])
    np.savez(folder / "TWICE.npz", images=images, labels=labels, class_names=["cat", "cat"])
    shutil.copytree(finished_run, folder / "RUN")
    shutil.copytree(finished_run, folder / "WIDTH")
    (folder / "WIDTH/config.json").write_text(changed(finished_run, lambda tree: tree["config"]["model"].update(dim=8)))
    for name, text in {
        "BROKEN": "{",
        "FORMAT": changed(finished_run, lambda tree: tree.update(format=99)),
        "BARE": changed(finished_run, lambda tree: tree.pop("config")),
        "UNKNOWN": changed(finished_run, lambda tree: tree["config"]["model"].update(dimm=8)),
        "TYPE": changed(finished_run, lambda tree: tree["config"]["model"].update(dim="four")),
        "RANGE": changed(finished_run, lambda tree: tree["config"]["model"].update(dim=-4)),
        "NETWORK": changed(finished_run, lambda tree: tree["config"]["model"].update(network="unett")),
        "NEW": (finished_run / "config.json").read_text(),
        "CATS": changed(finished_run, lambda tree: tree.update(class_names=["cat", "dog"])),
        "SOME": changed(finished_run, lambda tree: tree.update(class_names=["3", "7", "cat"])),
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    create_folder(Run(folder / "POINTS", preset("spiral"), (), open_run(finished_run).scaling))
    return folder


def changed(run, change):
    tree = json.loads((run / "config.json").read_text())
    change(tree)
    return json.dumps(tree)


def state_of(folder):
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if not path.is_dir()
    } | {str(path): None for path in folder.rglob("*") if path.is_dir()}


@pytest.mark.parametrize(("line", "shown"), [(line, shown) for line, *shown in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_line_and_changes_nothing(place, monkeypatch, capsys, line, shown):
    monkeypatch.chdir(place)
    before = state_of(place)
    capsys.readouterr()
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" or line.startswith("finetune")
    assert re.fullmatch(r"ddpm: [^\n]*\n", err), err
    for pattern in shown:
        assert re.search(pattern, err), (pattern, err)
    assert not re.search(r"Traceback|Orbax|ArrayRestoreArgs|\[Errno", err)
    assert state_of(place) == before


def test_every_command_has_its_mistakes():
    assert len(MISTAKES) >= 110 and len({line for line, *_ in MISTAKES}) == len(MISTAKES)
    for command in cli.COMMANDS:
        assert sum(line.split()[0] == command for line, *_ in MISTAKES) >= 4, command


@pytest.mark.parametrize(
    "line",
    [
        "train images --out OUT --data.source folder:nowhere",
        "train digits --out OUT --resume",
        "finetune OUT --out OUT2",
        "finetune RUN --out OUT --data.source npz:nowhere.npz",
        "sample OUT",
        "sample FILE",
        "sample BROKEN",
        "evaluate OUT",
        "edit BROKEN vary",
        "plot OUT",
        "convert OUT OUT.npz",
        "convert RUN FILE/w.npz",
        "import nowhere --out OUT",
        "verify EMPTY",
    ],
)
def test_what_needs_no_jax_does_not_wait_for_it(place, line):
    """In a process where importing jax fails."""
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from ddpm_jax.cli import main; status = main(sys.argv[1:])\n"
        "sys.exit(status if not {'flax', 'optax', 'orbax', 'grain'} & set(sys.modules) else 'too much is imported')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], cwd=place, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and re.fullmatch(r"ddpm: [^\n]*\n", done.stderr), done.stderr


# Classes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "word", "expected"),
    [
        (("3", "7", "0"), "3", 0),
        (("3", "7", "0"), "0", 2),
        (("3", "7", "0"), "1", None),
        (("cat", "dog"), "1", 1),
        (("cat", "dog"), "dog", 1),
        (("cat", "dog"), "2", None),
        (("cat", "7", "dog"), "7", 1),
        (("cat", "7", "dog"), "0", None),
        (("cat", "7", "dog"), "dog", 2),
    ],
)
def test_a_number_is_a_name_or_a_position_and_never_both(finished_run, tmp_path, names, word, expected):
    """In --labels, and in --data.classes alike."""
    from ddpm_jax import data
    from ddpm_jax.errors import UserError

    run = replace(open_run(finished_run), class_names=names)
    np.savez(
        tmp_path / "a.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9) % len(names), class_names=names
    )
    if expected is None:
        with pytest.raises(UserError, match=f"class '{word}' is none of"):
            run.labels(2, (word,))
        with pytest.raises(UserError, match=f"class '{word}' is none of"):
            data.open_source(f"npz:{tmp_path}/a.npz", classes=(word,))
    else:
        assert run.labels(2, (word,)).tolist() == [expected, expected]
        assert set(data.open_source(f"npz:{tmp_path}/a.npz", classes=(word,)).labels) == {expected}


def test_classes_added_by_their_number_may_not_have_a_name_that_is_there(place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(place)
    np.savez(
        tmp_path / "a.npz", images=np.zeros((99, 8, 8), np.uint8), labels=np.arange(99) % 3, class_names=["3", "7", "0"]
    )
    options = ["--data.source", f"npz:{tmp_path}/a.npz", "--model.num-classes", "5", "--out", "OUT"]
    assert cli.main(["train", "digits", *options]) == 2
    assert "'3' is there twice" in capsys.readouterr().err and not Path("OUT").exists()


# A run that is finished -----------------------------------------------------------------------------------------


def test_a_finished_run_says_so(finished_run, tmp_path, capsys):
    folder = tmp_path / "my run"
    shutil.copytree(finished_run, folder)
    before = state_of(folder)
    assert cli.main(["train", "digits", "--out", str(folder), "--resume"]) == 0
    out = capsys.readouterr().out
    assert "is finished: it has all its 12 steps" in out
    assert f"ddpm train digits --out '{folder}' --resume --train.steps 24" in out
    assert state_of(folder) == before


# Help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["train digits", "train spiral", "sample", "evaluate", "edit", "restore", "finetune", "import", "convert"],
)
def test_help_is_short_and_help_all_is_whole(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    texts = {}
    for flag in ("--help", "--help-all"):
        assert cli.main([*command.split(), flag]) == 0
        texts[flag] = capsys.readouterr().out
    short, whole = ({*re.findall(r"^[│ ] (--\w[\w.-]+)", text, flags=re.M)} for text in texts.values())
    assert short < whole and 3 <= len(short) <= 11
    assert len(texts["--help"].splitlines()) < 60
    assert "--help-all shows every one" in texts["--help"] and "--help-all shows" not in texts["--help-all"]
    for text in texts.values():
        assert "(default: )" not in text and "(default: None)" not in text


def test_help_shows_the_presets_own_defaults(capsys):
    assert cli.main(["train", "digits", "--help-all"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"--train\.lr FLOAT\W+Peak learning rate of Adam\. \(default: 0\.002\)", out)
    flags = re.findall(r"^[│ ] --model\.([\w-]+)", out, flags=re.M)
    assert len(flags) == 17 and "middle-scale" not in flags  # which only imported networks have
