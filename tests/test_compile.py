"""`ddpm compile`: topologies, figures and their table; where the compilers are installed, small programs for TPUs and GPUs."""

import dataclasses
import importlib.util
import json
import os
import re

import jax
import pytest

from ddpm_jax import cli, presets
from ddpm_jax import compile as compiling
from ddpm_jax.compile import topologies
from ddpm_jax.compile.chips import CHIPS, target_config
from ddpm_jax.compile.estimate import _out_of_memory
from ddpm_jax.compile.programs import as_run
from ddpm_jax.compile.report import Memory, figures_of, from_json
from ddpm_jax.compile.search import largest
from ddpm_jax.errors import UserError
from ddpm_jax.launch import ParallelConfig


def there(platform):
    """Whether its compiler can be loaded: that for CUDA looks for a GPU unless told not to, before JAX starts."""
    installed = importlib.util.find_spec(topologies._WHEELS[platform][0]) is not None
    return installed and (platform == "tpu" or os.environ.get("JAX_PLATFORMS") == "cpu")


TOPOLOGIES = [
    pytest.param(name, marks=pytest.mark.skipif(not there(platform), reason="the compiler is not installed"))
    for name, platform in (("v5e:2x2", "tpu"), ("h100:4", "cuda"))
]


def figures(**changed):
    counted = compiling.Costs(flops=3e12, bytes=4e9, padding=1e9)
    counted.matrix_flops.update({"bf16": 1.97e12, "f32": 0.0})
    counted.collectives["all-reduce", "f32"] = 2.0
    counted.collective_bytes["all-reduce", "f32"] = 142.5e6
    counted.convolutions["bf16", "NHWC_HWIO->NHWC"] = 155
    counted.loops.extend([1000, None])
    about = {
        "preset": "cifar10-ddpm", "what": "train", "topology": "v5e:2x4", "devices": 8, "mode": "data", "dtype": "bfloat16",
        "examples": 128, "steps": 1, "effort": "quick", "versions": {"jax": "0.10.2"}, "compile_s": 3.0,
    }  # fmt: skip
    memory = Memory(1e9, 0.0, 2e9, 3e9, CHIPS["v5e"].memory)
    return figures_of(counted, CHIPS[about["topology"].split(":")[0]], memory, **about | changed)


def test_bounds_follow_from_published_peaks():
    """1.97 TFLOP at 197 TFLOP/s are 10 ms; 4 GB at 819 GB/s are 4.9."""
    found = figures()
    assert found.arithmetic_ms == pytest.approx(10) and found.memory_ms == pytest.approx(4.884, rel=1e-3)
    assert found.bound_ms == pytest.approx(10) and found.images_per_s == pytest.approx(12_800) and found.mfu == 1
    assert found.padding == 0.25 and found.fits and found.loops == (1000, 0)


def test_the_table_says_all_of_it():
    text = figures().table()
    for part in (
        "128 examples over 8 devices of v5e:2x4, data, bfloat16; quick effort, jax 0.10.2",
        "3.00 GB of 17.2 GB fit: 1.00 of arguments, 2.00 temporary",
        "3 TFLOP, in products and convolutions: bf16 1.97 T",
        "4 GB with memory, 25% of it padding",
        "arithmetic 10 ms (197 TFLOP/s in bfloat16), memory 4.88 ms (819 GB/s); Google Cloud documentation",
        "12,800 examples/s; MFU 100%",
        "all-reduce f32 142.5 MB in 2",
        "155 bf16 NHWC_HWIO->NHWC",
        "1000, unknown, counted once turns",
    ):
        assert part in text, part
    walk = figures(what="sample", steps=1000).table()
    assert "128 samples x 1000 steps" in walk and "0.01 ms a step" in walk


def test_what_does_not_fit_is_said_with_what_would():
    found = dataclasses.replace(figures(), fits=False, memory=Memory(peak=21e9, capacity=16.9e9))
    assert "DOES NOT FIT: 21.0 GB are needed, of 16.9 GB: 4.1 GB too much; try --train.accumulate" in found.table()
    large = dataclasses.replace(figures(topology="h100:8"), memory=Memory(peak=70e9, capacity=80e9))
    assert "set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, of which JAX takes 0.75" in large.table()


def test_figures_go_through_json():
    found = figures()
    assert from_json(found.to_json()) == found
    assert json.loads(found.to_json())["bounds"]["mfu"] == 1
    with pytest.raises(UserError, match="no figures of a compiled program"):
        from_json('{"preset": 3}')


@pytest.mark.parametrize(
    ("limit", "begin", "unit"), [(1000, 128, 8), (5, 128, 1), (3, 128, 4), (97, 96, 1), (64, 4096, 64)]
)
def test_the_largest_that_fits(limit, begin, unit):
    asked = []

    def fits(size):
        asked.append(size)
        assert size % unit == 0
        return size <= limit

    found, best = largest(fits, begin, unit), limit // unit * unit
    assert found <= best <= found + max(unit, found / 16) and len(asked) == len(set(asked)) < 16


# Topologies and mistakes -----------------------------------------------------------------------------------------


def test_topologies():
    assert compiling.topology("V5E:2x4").count == 8 and compiling.topology("v5p:2x2x2").count == 8
    assert compiling.topology("h200:16").count == 16 and compiling.topology("b200:1").chip.memory == 180e9


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("v7x:2x4", "with a chip of v5e, v5p, v6e, a100, h100, h200, b200, as v5e:2x4 or h100:8; got 'v7x:2x4'"),
        ("h10:8", "Did you mean 'h100'?"),
        ("v5e", "v5e comes as v5e:1x1, v5e:2x2, v5e:2x4,"),
        ("v5e:3x3", "v5e:16x16; got 'v5e:3x3'"),
        ("h100:3", "h100 comes as h100:1, h100:2, h100:4, h100:8"),
    ],
)
def test_topologies_that_do_not_exist(name, shown):
    with pytest.raises(UserError, match=re.escape(shown)):
        compiling.topology(name)


@pytest.mark.parametrize(
    ("where", "shown"), [("v5e:2x4", "ddpm-jax[aot-tpu]' (137 MB)"), ("h100:8", "ddpm-jax[aot-cuda]'")]
)
def test_a_compiler_that_is_not_installed(where, shown, monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=re.escape(shown)):
        compiling.estimate(presets.preset("spiral"), where)


def test_mistakes_on_the_command_line(capsys, tmp_path):
    for arguments, shown in (
        ("spiral", "--topology"),
        ("spiral --topology v5e", "v5e comes as v5e:1x1"),
        ("spiral --topology v5e:2x2 --what train walk", "walk"),
        ("spirral --topology v5e:2x2", "Did you mean 'spiral'?"),
    ):
        assert cli.main(["compile", *arguments.split()]) == 2
        assert shown in capsys.readouterr().err


def test_what_a_gpus_compiler_is_told():
    text = target_config(CHIPS["h100"])
    for part in (
        "major: 9 minor: 0",
        "core_count: 132",
        "memory_bandwidth: 3350000000000",
        "shared_memory_per_core: 233472",
    ):
        assert part in text


def test_what_the_compiler_says_of_too_little_memory():
    """As XLA puts it for TPUs; and of other failures nothing."""
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 29.45G of 15.75G hbm. Exceeded hbm capacity by 13.70G."
    )
    found = _out_of_memory(said, 1.0)
    assert found == Memory(peak=29.45 * 2**30, capacity=15.75 * 2**30)
    assert _out_of_memory("RESOURCE_EXHAUSTED: too much", 3.0) == Memory(capacity=3.0)
    assert _out_of_memory("INTERNAL: something else", 1.0) is None


# Where the compilers are installed -------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))


@pytest.mark.parametrize("where", TOPOLOGIES)
def test_points_are_trained_on_four_devices(where, kept):
    """The same arithmetic as XLA counts for the CPU, gradients summed over the devices, and kept for the next time."""
    preset = presets.preset("spiral")
    preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, batch_size=64))
    found = compiling.estimate(preset, where)
    assert found.fits and found.devices == 4 and found.examples == 64 and not found.from_cache
    assert [each.kind for each in found.collectives][:1] == ["all-reduce"]
    sizes = [leaf.size for leaf in jax.tree.leaves(as_run(preset).abstract_state().params)]
    assert sum(each.bytes for each in found.collectives) == pytest.approx(4 * sum(sizes), rel=0.02)
    again = compiling.estimate(preset, where)
    assert again.from_cache and again == dataclasses.replace(found, from_cache=True)
    with pytest.raises(UserError, match="a multiple of 4"):
        compiling.estimate(presets.preset("spiral"), where)
    with pytest.raises(UserError, match="pmap needs the devices themselves"):
        compiling.estimate(preset, where, spread=ParallelConfig(mode="pmap"))


@pytest.mark.parametrize("where", TOPOLOGIES)
def test_digits_are_drawn_by_a_loop_of_convolutions(where, kept, capsys, tmp_path):
    """By the command: 20 steps, each the network's operations, from the loop's body times its turns."""
    options = "--sample.num 8 --sample.steps 20 --train.dtype bfloat16 --model.dim 8 --model.norm-groups 4"
    command = f"compile digits --topology {where} --what sample {options} --out {tmp_path / 'found.json'}"
    assert cli.main(command.split()) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert 20 in found["loops"] and found["convolutions"] and found["examples"] == 8
    assert set(found["matrix_flops"]) >= {"bf16"}
    assert "8 samples x 20 steps over 4 devices" in capsys.readouterr().out


@pytest.mark.parametrize("where", TOPOLOGIES)
def test_shared_parameters_are_moved_in_what_is_computed_in(where, kept):
    """With fsdp parameters that lie in shares are brought together in bfloat16, none of them in float32."""
    preset = presets.preset("spiral")
    preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, batch_size=64, dtype="bfloat16"))
    found = compiling.estimate(preset, where, spread=ParallelConfig(mode="fsdp", min_shard=1024))
    shared = [leaf.size for leaf in jax.tree.leaves(as_run(preset).abstract_state().params) if leaf.size >= 1024]
    gathered = {each.dtype: each.bytes for each in found.collectives if each.kind == "all-gather"}
    assert set(gathered) == {"bf16"} and gathered["bf16"] >= 2 * sum(shared)
