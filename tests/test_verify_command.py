"""`ddpm verify jax_net:Model torch_net:Model`: a pair of one's own by name, its report in a browser's terms, and mistakes."""

import json
import re
import sys
from operator import attrgetter

import numpy as np
import pytest

from ddpm_jax import cli
from ddpm_jax.errors import UserError
from ddpm_jax.verify import heat, loading
from ddpm_jax.verify.measure import precision_of
from ddpm_jax.verify.places import place_of
from ddpm_jax.verify.report import Coverage

pytest.importorskip("torch")

JAX_NET = """
import jax
from flax import nnx

class Model(nnx.Module):
    def __init__(self, *, rngs, exact=False):
        self.stem, self.head, self.exact = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs), exact

    def __call__(self, x, t):
        return self.head(jax.nn.gelu(self.stem(x), approximate=not self.exact)) + t[:, None]

def right():
    return Model(rngs=nnx.Rngs(0), exact=True)

class Needy(Model):
    def __init__(self, width, *, rngs):
        super().__init__(rngs=rngs)

NOTHING = 3
"""
TORCH_NET = """
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, t):
        return self.head(nn.functional.gelu(self.conv(x))) + t[:, None]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "verified_jax.py").write_text(JAX_NET)
    (tmp_path / "verified_torch.py").write_text(TORCH_NET)
    np.save(tmp_path / "t.npy", np.array([3, 5]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("verified_jax", "verified_torch"):
        sys.modules.pop(name, None)


TORCH, MAP = "verified_torch:Model", ["--map", "stem=conv"]
INPUTS = ["--input", "x=2,3", "--input", "t=2:9"]


def test_a_pair_that_is_right_and_one_that_is_not(folder, capsys):
    # an array from a file, and a function that makes the side
    given = ["--input", "x=2,3", "--input", "t=t.npy"]
    assert cli.main(["verify", "verified_jax:right", TORCH, *given, *MAP, "--out", "right"]) == 0
    assert "agreement: all" in capsys.readouterr().out
    assert cli.main(["verify", "verified_jax:Model", TORCH, *INPUTS, *MAP, "--out", "wrong"]) == 1
    assert "tanh GELU in JAX, exact GELU in PyTorch (of `stem`)" in capsys.readouterr().out
    (report,) = json.loads((folder / "wrong" / "report.json").read_text())
    assert [fault["name"] for fault in report["faults"]] == ["head"] and report["coverage"]["compared"] == 2
    page = (folder / "wrong" / "report.html").read_text()
    assert "<td>conv 2x4</td><td>stem 2x4</td>" in page and "class='heat'" in page and "class='fault'" in page
    assert "|JAX - PyTorch|" in page and not re.search(r"https?:|src=|<script", page)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verified_jax:Model"], r"a pair is jax_net:Model torch_net:Model, .*; got 1 names"),
        (["verified_jax:Model", TORCH], r"a pair needs inputs: --input x=2,3,32,32"),
        (["verified_jax:Model", TORCH, "--input", "x"], r"must be NAME=SHAPE, .*; got 'x'"),
        (["verified_jax:Model", TORCH, "--input", "x=2,0"], r"whole numbers above 0.*; got 'x=2,0'"),
        (["verified_jax:Model", TORCH, "--input", "x=no.npy"], r"no.npy is no array"),
        (["verified_jax:Model", TORCH, "--map", "a", *INPUTS], r"--map takes JAX=TORCH, .*; got 'a'"),
        (["verified_jax:Modle", TORCH, *INPUTS], r"verified_jax has no 'Modle'\. Did you mean 'Model'"),
        (["verified_no:Model", TORCH, *INPUTS], r"there is no module to import for 'verified_no:Model'"),
        (["verified_jax:Needy", TORCH, *INPUTS], r"verified_jax:Needy needs width: name a function"),
        (["verified_jax:NOTHING", TORCH, *INPUTS], r"jax_model must be an nnx.Module, .*; got a int|an int"),
        (["verified_jax:right", TORCH, "--map", "stm=conv", *INPUTS], r"names: .* fits no path of the JAX side"),
    ],
)
def test_mistakes(folder, arguments, said, capsys):
    assert cli.main(["verify", *arguments, "--out", "out"]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (folder / "out").exists()


def test_sides_and_inputs_by_name(folder):
    assert type(loading.load("verified_jax:Model", 0)).__name__ == "Model"
    for spec, kernel in (("verified_jax:Model", "stem.kernel"), ("verified_torch:Model", "conv.weight")):
        one, same, other = (attrgetter(kernel)(loading.load(spec, seed))[...] for seed in (3, 3, 4))
        assert (one == same).all() and (one != other).all()
    found = loading.inputs_of(["x=2,3", "ids=4:10"], seed=0)
    assert found["x"].shape == (2, 3) and found["x"].dtype == np.float64
    assert found["ids"].shape == (4,) and found["ids"].min() >= 0 and found["ids"].max() < 10
    with pytest.raises(UserError, match="a side must be MODULE:NAME"):
        loading.load("verified_jax", 0)


def test_a_pair_without_pytorch_is_told_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    assert cli.main(["verify", "verified_jax:Model", "verified_torch:Model", "--input", "x=2,3"]) == 2
    assert 'verifying needs PyTorch: pip install "ddpm-jax[torch]"' in capsys.readouterr().err


RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((2, 6, 5, 4))


def spoilt(index, by=1.0):
    array = IMAGE.copy()
    array[index] += by
    return array


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (-IMAGE, "JAX's is -1 times PyTorch's"),
        (2 * IMAGE, "JAX's is 2 times PyTorch's"),
        (IMAGE + 3, "JAX's is PyTorch's plus 3"),
        (IMAGE + np.arange(4.0), "a constant for each channel (a bias)"),
        (IMAGE * np.arange(1.0, 5), "a factor for each channel, from 1 to 4"),
        (IMAGE * (1 + 1e-6 * np.arange(1.0, 5)), "a factor for each channel, from 1.000001 to 1.000004"),
        (IMAGE[:, ::-1], "turned round along the rows"),
        (np.roll(IMAGE, 2, 2), "shifted by 2 along the columns"),
        (IMAGE[..., [1, 0, 3, 2]], "channels are in another order: JAX's are PyTorch's 1, 0, 3, 2"),
        (spoilt(np.s_[..., 3]), "in channel 3 of 4 alone"),
        (spoilt(np.s_[:, 5]), "in the last row alone"),
        (spoilt(np.s_[1]), "in example 1 of 2 alone"),
        (spoilt(np.s_[:, [0, -1]]), "in the first and last rows alone"),
        (spoilt(np.s_[:, 1:3]), "in rows 1 to 2 of 6 alone"),
        (0 * IMAGE, "JAX has zeros alone"),
        (IMAGE * np.nan, "JAX hold NaN or infinity"),
        (np.where(np.pad(np.zeros((4, 3)), 1, constant_values=1)[..., None], IMAGE + 1, IMAGE), "at the edges alone"),
    ],
)
def test_where_in_the_array(ours, said):
    assert place_of(ours, IMAGE) == said


def test_axes_exchanged_are_told():
    square = RNG.standard_normal((2, 5, 5, 4))
    assert place_of(square.swapaxes(1, 2), square).startswith("axes are exchanged: PyTorch's in the order (0, 2, 1, 3)")


def test_the_fewest_digits_that_hold_an_array():
    numbers = RNG.standard_normal(64)
    assert precision_of(numbers) == "float64"
    assert precision_of(numbers.astype(np.float32)) == "float32"
    assert precision_of(numbers.astype(np.float16).astype(np.float64)) == "float16"
    truncated = (numbers.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert precision_of(truncated) == "bfloat16"
    assert precision_of(np.arange(64.0)) == "float64"  # whole numbers tell nothing


def test_the_heat_map_shows_the_plane_of_the_largest_difference():
    ours = spoilt(np.s_[1, 2, 3, 2], by=9.0)
    picture = heat.picture_of("layer", ours, IMAGE)
    assert picture.plane == "[1, :, :, 2]" and picture.ours.shape == (6, 5)
    svg = heat.to_svg(picture)
    assert svg.count("<rect") == 3 * 30 and svg.count("#910000") == 1  # the one square that differs
    large = heat.picture_of("layer", RNG.standard_normal((1, 100, 70, 2)), RNG.standard_normal((1, 100, 70, 2)))
    assert heat.to_svg(large).count("<rect") == 3 * 32 * 32
    assert heat.picture_of("layer", ours, IMAGE[:1]) is None


def test_coverage_in_words():
    assert Coverage(0).words() == "no layers to compare"
    many = Coverage(85, tuple(f"a{i}" for i in range(20)), tuple(f"b{i}" for i in range(15)))
    assert many.words(2) == "85 of 120 layers compared; not compared: 35 (b0, b1, …)"
