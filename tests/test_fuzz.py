"""Files that anybody may have made: whatever their bytes, they are read, or refused by a UserError; bombs do not go off."""

import contextlib
import gzip
import io
import json
import os
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from data_builders import write_idx, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm_jax import data, presets
from ddpm_jax.archives import LARGE, MOST_TIMES
from ddpm_jax.errors import UserError
from ddpm_jax.training import open_run
from ddpm_jax.training.checkpoints import damage
from ddpm_jax.training.metrics import read_metrics
from ddpm_jax.weights import read_tensors, write_tensors

RNG = np.random.default_rng(0)

# What is done to a file ------------------------------------------------------------------------------------------

INTEGERS = [
    b"\xff" * 4,
    b"\x00" * 4,
    b"\x7f" + b"\xff" * 3,
    b"\xff" * 3 + b"\x7f",
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x80" + b"\x00" * 7,
]


@st.composite
def edits(draw):
    """(what, where as a share of the file, with what)."""
    what = draw(st.sampled_from(["flip", "flip", "set", "number", "cut", "insert", "repeat", "drop"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    if what == "number":
        return what, where, draw(st.sampled_from(INTEGERS))
    if what in ("set", "insert"):
        return what, where, draw(st.binary(min_size=1, max_size=8))
    return what, where, draw(st.integers(0, 255))


def edited(content, changes):
    """The bytes after changes in turn."""
    for what, where, value in changes:
        at = int(where * len(content))
        if what == "flip":
            content = content[:at] + bytes(b ^ (1 << value % 8) for b in content[at : at + 1]) + content[at + 1 :]
        elif what in ("set", "number"):
            content = content[:at] + value + content[at + len(value) :]
        elif what == "cut":
            content = content[:at]
        elif what == "insert":
            content = content[:at] + value + content[at:]
        elif what == "repeat":
            content = content[: at + value] + content[at:]
        else:
            content = content[:at] + content[at + 1 + value :]
    return content


CHANGES = st.lists(edits(), min_size=1, max_size=3)
MANY = pytest.mark.parametrize("examples", [50, pytest.param(2000, marks=pytest.mark.slow)])


def fuzz(examples, strategy, check):
    """check(value) for so many values; it may return, or raise a UserError."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(value):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(UserError):
                check(value)

    one()


def fuzz_file(examples, path, load):
    """Load a valid file after changes to its bytes; it must load as it is."""
    whole = path.read_bytes()
    load(path)

    def check(changes):
        path.write_bytes(edited(whole, changes))
        load(path)

    fuzz(examples, CHANGES, check)


# Data ------------------------------------------------------------------------------------------------------------


def every_image(spec):
    source = data.open_source(str(spec))
    for index in range(len(source)):
        with contextlib.suppress(UserError):
            source[index]


@MANY
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, examples, save):
    save(
        tmp_path / "a.npz",
        images=RNG.integers(0, 256, (4, 5, 5), np.uint8),
        labels=np.arange(4),
        class_names=list("abcd"),
    )
    fuzz_file(examples, tmp_path / "a.npz", every_image)


@MANY
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_idx(tmp_path, examples, kind, suffix):
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", RNG.integers(0, 256, (4, 5, 5)))
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.arange(4))
    fuzz_file(examples, tmp_path / f"train-{kind}-ubyte{suffix}", lambda path: every_image(f"idx:{path.parent}"))


@MANY
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_images(tmp_path, examples, suffix):
    """The image is decoded, or refused by name."""
    path = write_image(tmp_path / f"a.{suffix}", RNG.integers(0, 256, (9, 7, 3), np.uint8))

    def load(path):
        data.open_source(f"folder:{path.parent}")[0]

    fuzz_file(examples, path, load)


@MANY
def test_png_with_valid_checksums(tmp_path, examples):
    """Chunks whose checksum is right reach further into the decoder than flipped bits do: sizes, depths, colour types, EXIF."""
    picture = Image.fromarray(RNG.integers(0, 256, (9, 7, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif, dpi=(72, 72))
    whole, chunks, at = buffer.getvalue(), [], 8
    while at < len(whole):
        (length,) = struct.unpack_from(">I", whole, at)
        chunks.append((whole[at + 4 : at + 8], whole[at + 8 : at + 8 + length]))
        at += 12 + length

    def check(value):
        which, changes = value
        content = whole[:8]
        for number, (kind, body) in enumerate(chunks):
            changed = edited(body, changes) if number == which % len(chunks) else body
            content += struct.pack(">I", len(changed)) + kind + changed
            content += struct.pack(">I", zipfile.crc32(kind + changed))
        (tmp_path / "a.png").write_bytes(content)
        data.open_source(f"folder:{tmp_path}")[0]

    check((0, []))
    fuzz(examples, st.tuples(st.integers(0, 20), CHANGES), check)


@MANY
def test_zip(tmp_path, examples):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("cat/1.png", "cat/2.bmp", "dog/1.gif"):
            archive.write(write_image(tmp_path / name, RNG.integers(0, 256, (5, 5), np.uint8)), name)
    fuzz_file(examples, path, lambda path: every_image(f"zip:{path}"))


# Weights ---------------------------------------------------------------------------------------------------------


@MANY
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_weights(tmp_path, examples, suffix):
    arrays = {"a.weight": RNG.normal(size=(3, 4)).astype(np.float32), "b": np.arange(3), "c": np.array(1.5)}
    fuzz_file(examples, write_tensors(tmp_path / f"w{suffix}", arrays), read_tensors)


# Run folders -----------------------------------------------------------------------------------------------------


@MANY
def test_config_bytes(tmp_path, finished_run, examples):
    (tmp_path / "config.json").write_bytes((finished_run / "config.json").read_bytes())
    fuzz_file(examples, tmp_path / "config.json", lambda path: open_run(path.parent))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**30, -(10**400), "1", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@MANY
def test_config_values(tmp_path, finished_run, examples):
    """One value anywhere in the tree is another, or gone: a config that is taken has every field of its type."""
    text = (finished_run / "config.json").read_text()

    def places(tree, path=()):
        for key, value in tree.items():
            yield (*path, key)
            if isinstance(value, dict):
                yield from places(value, (*path, key))

    every = list(places(json.loads(text)))

    def check(value):
        number, gone, new = value
        *path, last = every[number % len(every)]
        tree = part = json.loads(text)
        for key in path:
            part = part[key]
        part[last] = new
        if gone:
            del part[last]
        (tmp_path / "config.json").write_text(json.dumps(tree))
        config = open_run(tmp_path).config
        assert presets.from_json(presets.to_json(config)) == config
        assert (
            type(config.train.batch_size) is int and type(config.train.lr) is float and type(config.data.flip) is bool
        )

    fuzz(examples, st.tuples(st.integers(0, 1000), st.booleans(), ANYTHING), check)


@MANY
def test_metrics(tmp_path, finished_run, examples):
    """Whatever is left is a line of numbers, and what was not touched is still there."""
    (tmp_path / "metrics.jsonl").write_bytes((finished_run / "metrics.jsonl").read_bytes())

    def load(path):
        lines = read_metrics(path.parent)
        assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
        assert all(value is None or np.isfinite(float(value)) for line in lines for value in line.values())

    fuzz_file(examples, tmp_path / "metrics.jsonl", load)


@MANY
@pytest.mark.parametrize("name", ["manifest.json", "_CHECKPOINT_METADATA"])
def test_manifests(tmp_path, finished_run, examples, name):
    """Never an exception; another manifest is always damage."""
    for path in sorted((finished_run / "checkpoints" / "12").rglob("*")):
        if path.is_file():
            copy = tmp_path / path.relative_to(finished_run / "checkpoints" / "12")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    whole = (tmp_path / name).read_bytes()
    expected = json.loads((tmp_path / "manifest.json").read_bytes())

    def load(path):
        problem, _ = damage(path.parent)
        if problem is None:
            assert path.read_bytes() == whole or json.loads(path.read_bytes()) == expected

    fuzz_file(examples, tmp_path / name, load)


# Bombs, and what would run code ----------------------------------------------------------------------------------


@contextlib.contextmanager
def little_memory(most):
    """What is done within never holds more than so many bytes at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def bomb(path, name):
    """A file that holds zeros, packed two hundred times and more."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(name, "w") as file:
        for _ in range(LARGE // 2**24 + 1):
            file.write(bytes(2**24))
    assert path.stat().st_size * MOST_TIMES < LARGE
    return path


def npy_header(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_zip_bombs(tmp_path):
    """As an image, an array and a tensor: refused by its size, before it is unpacked."""
    image, array, tensor = bomb(tmp_path / "a.zip", "bomb.png"), tmp_path / "a.npz", tmp_path / "a.pt"
    array.write_bytes(image.read_bytes().replace(b"bomb.png", b"bomb.npy"))
    tensor.write_bytes(image.read_bytes().replace(b"bomb.png", b"data/123"))
    with little_memory(2**24):
        with pytest.raises(UserError, match=rf"bomb\.png.* would unpack to {LARGE + 2**24:,}"):
            data.open_source(f"zip:{image}")[0]
        for load in (lambda: data.open_source(f"npz:{array}"), lambda: read_tensors(array)):
            with pytest.raises(UserError, match=r"bomb\.npy is refused: .* would unpack to"):
                load()
    with pytest.raises(UserError, match=r"data/123 is refused: .* would unpack to"):
        read_tensors(tensor)


def test_what_compresses_well_and_is_small_is_no_bomb(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1000, 32, 32), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size * MOST_TIMES < 1000 * 32 * 32 < LARGE
    assert len(data.open_source(f"npz:{tmp_path / 'a.npz'}")) == 1000


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(2**31, 2**10, 2**10), (2**10, 2**10, 2**10)])
def test_idx_that_declares_too_much(tmp_path, suffix, shape):
    """No memory is taken for what a header promises."""
    path = write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", np.zeros((10, 8, 8)), declare=shape)
    with little_memory(2**24), pytest.raises(UserError, match=r"ubyte(\.gz)? is refused: "):
        data.open_source(f"idx:{path}")


def test_a_gzip_bomb(tmp_path):
    """What follows ten small images is not unpacked."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">4I", 0x0803, 10, 8, 8))
        for _ in range(16):
            file.write(bytes(2**24))
    with little_memory(2**24), pytest.raises(UserError, match="too long"):
        data.open_source(f"idx:{path}")


def test_npz_whose_header_declares_too_much(tmp_path):
    """A terabyte in a header, with six bytes after it."""
    path = tmp_path / "a.npz"
    for shape in ((2**10, 2**15, 2**15), (-1, 2, 3), (2**70, 0)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", npy_header(shape) + bytes(6))
        for load in (lambda: data.open_source(f"npz:{path}"), lambda: read_tensors(path)):
            with little_memory(2**24), pytest.raises(UserError, match=r"images\.npy is damaged|cannot be read"):
                load()


def test_safetensors_whose_header_declares_too_much(tmp_path):
    """A header of exabytes, and a tensor of a terabyte."""
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**20, 2**18], "data_offsets": [0, 2**40]}}).encode()
    for content in (struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", len(header)) + header + bytes(8)):
        path.write_bytes(content)
        with little_memory(2**24), pytest.raises(UserError, match="not a readable safetensors file"):
            read_tensors(path)


def test_a_tensor_that_is_one_number_many_times(tmp_path):
    """PyTorch may store a terabyte as four bytes and a stride of 0."""
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(1).expand(2**38)}, tmp_path / "a.pt")
    with little_memory(2**24), pytest.raises(UserError, match="a is refused: "):
        read_tensors(tmp_path / "a.pt")


def test_members_that_would_leave_the_archive_stay_in_it(tmp_path):
    """Nothing is unpacked to the disk: names with .. or from the root are labels alone."""
    path, inside = tmp_path / "below" / "a.zip", tmp_path / "below"
    picture = write_image(tmp_path / "p.png", np.zeros((5, 5), np.uint8)).read_bytes()
    inside.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../outside/1.png", "../outside/2.png", "/root/1.png", "cat/../../../2.png"):
            archive.writestr(name, picture)
    before = sorted(tmp_path.rglob("*"))
    every_image(f"zip:{path}")
    assert sorted(tmp_path.rglob("*")) == before


def test_postscript_is_no_image(tmp_path, monkeypatch):
    """Pillow would hand it to Ghostscript, which runs it."""
    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("a program was started"))
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="no known image format"):
        data.open_source(f"folder:{tmp_path}")[0]


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("key", ["images", "a.weight"])
def test_pickles_in_npz_are_not_read(tmp_path, key):
    proof, path = tmp_path / "ran", tmp_path / "a.npz"
    np.savez(path, **{key: np.array([Trap(proof)], object)}, allow_pickle=True)
    for load in (lambda: data.open_source(f"npz:{path}"), lambda: read_tensors(path)):
        with pytest.raises(UserError, match=f"{key}.*without pickled objects"):
            load()
    assert not proof.exists()
    np.load(path, allow_pickle=True)[key]
    assert proof.exists()  # it would have been


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("config", "train", "lr"), "0.1", r"train\.lr must be a number; got '0\.1'"),
        (("config", "train", "steps"), 12.5, r"train\.steps must be a whole number or null; got 12\.5"),
        (("config", "train", "batch_size"), True, r"train\.batch_size must be a whole number; got True"),
        (("config", "data", "flip"), "no", r"data\.flip must be true or false; got 'no'"),
        (("config", "data", "classes"), "cat", r"data\.classes must be a list of text; got 'cat'"),
        (("config", "data", "scale"), "both", r"data\.scale must be one of signed, unit; got 'both'"),
        (("config", "model", "network"), "os.system", r"the network must be one of annotated_unet"),
        (("config", "model", "dim"), "__import__('os')", r"model\.dim must be a whole number"),
        (
            ("config", "model", "dim_mults"),
            [1, "2"],
            r"model\.dim_mults must be a list of a whole number; got \[1, '2'\]",
        ),
        (("config", "model"), [], r"model must be an object; got \[\]"),
        (("scaling", "std"), None, r"scaling\.std must be a number; got None"),
        (("scaling",), {"mean": 0.5}, r"scaling needs 'std', which is missing"),
        (("class_names",), "0123456789", r"class_names must be a list of text"),
        (("origin",), "elsewhere", r"origin must be an object or null; got 'elsewhere'"),
        (("config",), None, r"the config must be an object; got None"),
    ],
)
def test_a_config_of_other_types_is_refused_by_name(finished_run, tmp_path, place, value, message):
    tree = part = json.loads((finished_run / "config.json").read_text())
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=rf"config\.json cannot be read: (.*: )?{message}"):
        open_run(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": ' * 50_000, b"\xff\xfe", b"1" * 10_000, b"NaN"])
def test_a_config_that_is_no_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        open_run(tmp_path)


def test_failures_of_the_machine_are_no_bad_images(tmp_path, monkeypatch):
    """They come through as they are, so that a disk error does not skip half of an archive."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", write_image(tmp_path / "a.png", np.zeros((5, 5), np.uint8)).read_bytes())
    source = data.open_source(f"zip:{tmp_path / 'a.zip'}", on_bad_image="skip")

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "read", broken)
    with pytest.raises(OSError, match="Input/output"):
        source[0]
    assert source.bad_files == 0
