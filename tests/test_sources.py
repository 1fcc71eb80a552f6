"""Every source of ddpm_jax.data, whole and damaged: digits, IDX, folders, npz, TensorFlow Datasets, and their specs."""

import errno
import os
import pickle
import re
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data_builders import take, write_idx, write_image, write_tfds
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data.decoding import image_to_array
from ddpm_jax.errors import UserError

RNG = np.random.default_rng(0)

# Digits and IDX ---------------------------------------------------------------------------------------------


def test_digits():
    """scikit-learn's values 0..16 reach 0..255; the source survives pickling."""
    from sklearn.datasets import load_digits

    source = data.open_source("digits")
    assert len(source) == 1797 and source.class_names == tuple("0123456789")
    assert source[5]["image"].shape == (8, 8, 1) and source[5]["label"] == 5
    assert source[5]["image"].dtype == np.uint8 and source[5]["label"].dtype == np.int32
    truth = load_digits().images[5]
    np.testing.assert_array_equal(source[5]["image"][..., 0], np.floor(truth * 255 / 16 + 0.5))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[5]["image"], source[5]["image"])
    with pytest.raises(IndexError):
        source[1797]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder_file_and_split(tmp_path, suffix):
    """Both splits, plain and gzipped, with labels found beside the images."""
    images = RNG.integers(0, 256, (6, 3, 5), np.uint8)
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(6))
    test_file = write_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", images[:2])
    for spec in (f"idx:{tmp_path}", f"idx:{tmp_path}:train", str(tmp_path)):
        source = data.open_source(spec)
        assert source.class_names == tuple("0123456789") and len(source) == 6
        np.testing.assert_array_equal(source[4]["image"], images[4, ..., None])
        assert source[4]["label"] == 4
    for spec in (f"idx:{tmp_path}:test", f"idx:{test_file}"):
        source = data.open_source(spec)
        assert (len(source), source.class_names, source[1]["label"]) == (2, (), 0)
    with pytest.raises(UserError, match="'test' can be chosen of a folder only"):
        data.open_source(f"idx:{test_file}:test")


def test_idx_prefers_what_exists_and_names_the_classes(tmp_path):
    """A folder with the test split only; Fashion-MNIST by its path; more classes than ten by number."""
    write_idx(tmp_path / "Fashion-MNIST" / "t10k-images-idx3-ubyte.gz", np.zeros((2, 3, 3)))
    write_idx(tmp_path / "Fashion-MNIST" / "t10k-labels-idx1-ubyte.gz", np.array([9, 1]))
    source = data.open_source(f"idx:{tmp_path / 'Fashion-MNIST'}")
    assert source.class_names[source[0]["label"]] == "Ankle boot" and len(source.class_names) == 10
    write_idx(tmp_path / "letters" / "train-images.idx3-ubyte", np.zeros((2, 3, 3)))
    write_idx(tmp_path / "letters" / "train-labels.idx1-ubyte", np.array([25, 1]))
    assert data.open_source(f"idx:{tmp_path / 'letters'}").class_names == tuple(map(str, range(26)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"magic": 0x0D03}, "magic number must be 0x00000803, found 0x00000d03"),
        ({"magic": 0x0801}, "magic number"),
        ({"cut": 1}, "truncated; .* need 18 bytes, 17 follow"),
        ({"cut": 30}, "truncated; .* header"),
        ({"declare": (1, 3, 3)}, "too long"),
        ({"declare": (0, 3, 3)}, "empty"),
    ],
)
def test_idx_damage_is_named(tmp_path, damage, message):
    """The file, and what is wrong with it."""
    path = write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 3, 3)), **damage)
    with pytest.raises(UserError, match=f"train-images-idx3-ubyte: .*{message}"):
        data.open_source(f"idx:{path}")


def test_idx_other_errors(tmp_path):
    """A broken gzip, labels that do not match, nothing there."""
    path = write_idx(tmp_path / "a" / "train-images-idx3-ubyte.gz", RNG.integers(0, 256, (20, 9, 9)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"ubyte\.gz: cannot be read"):
        data.open_source(f"idx:{path}")
    write_idx(tmp_path / "b" / "train-images-idx3-ubyte", np.zeros((2, 3, 3)))
    write_idx(tmp_path / "b" / "train-labels-idx1-ubyte", np.zeros(3))
    with pytest.raises(UserError, match="3 labels for the 2 images"):
        data.open_source(f"idx:{tmp_path / 'b'}")
    with pytest.raises(UserError, match="expected t10k-images"):
        data.open_source(f"idx:{tmp_path / 'b'}:test")
    with pytest.raises(UserError, match="nowhere: no such"):
        data.open_source(f"idx:{tmp_path / 'nowhere'}")


# Folders ----------------------------------------------------------------------------------------------------


def grey(value, side=6):
    """A flat grey RGB image."""
    return np.full((side, side, 3), value, np.uint8)


def test_folder_with_classes(tmp_path):
    """Sorted names number the classes; hidden files, other files and folders without images do not count."""
    write_image(tmp_path / "dog" / "1.PNG", grey(30))
    write_image(tmp_path / "cat" / "deep" / "2.png", grey(20))
    write_image(tmp_path / "cat" / "1.bmp", grey(10))
    write_image(tmp_path / "cat" / ".hidden.png", grey(99))
    write_image(tmp_path / ".hidden" / "1.png", grey(99))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "README").write_text("no image")
    (tmp_path / "Thumbs.db").write_text("no image")
    for spec in (f"folder:{tmp_path}", str(tmp_path)):
        with pytest.warns(
            UserWarning, match=re.escape(f"{tmp_path}: not used: 1 .txt, 1 without extension, 1 empty folder (empty).")
        ) as caught:
            source = data.open_source(spec)
        assert len(caught) == 1
        assert source.class_names == ("cat", "dog") and data.labels_of(source).tolist() == [0, 0, 1]
        assert [source[i]["image"][0, 0, 0] for i in range(3)] == [10, 20, 30]
        assert pickle.loads(pickle.dumps(source))[2]["label"] == 1
    data.check_labels(source, 2)
    with pytest.raises(UserError, match="image 2 "):
        data.check_labels(source, 1)


def test_links_are_followed(tmp_path):
    """To folders, also where all classes are links, and to files; one that leads back to where it lies is named."""
    for i, name in enumerate(("cat", "dog")):
        write_image(tmp_path / "d" / name / "1.png", grey(10 * i))
    write_image(tmp_path / "e" / "bird" / "deep" / "1.png", grey(50))
    (tmp_path / "d" / "bird").symlink_to("../e/bird")
    source = data.open_source(str(tmp_path / "d"))
    assert source.class_names == ("bird", "cat", "dog")
    assert [int(source[i]["image"][0, 0, 0]) for i in range(3)] == [50, 0, 10]
    (tmp_path / "all").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "all" / name).symlink_to(tmp_path / "d" / name)
    (tmp_path / "all" / "dog" / "2.png").symlink_to(tmp_path / "e" / "bird" / "deep" / "1.png")
    assert data.labels_of(data.open_source(str(tmp_path / "all"))).tolist() == [0, 1, 1]

    loop = tmp_path / "e" / "bird" / "deep" / "up"
    loop.symlink_to("../..")
    with pytest.raises(UserError, match=re.escape(f"{loop}: a link to {tmp_path / 'e'}, in which it lies")):
        data.open_source(str(tmp_path / "e"))
    # by way of another link
    with pytest.raises(UserError, match=r"up: a link to .*, in which it lies|bird: a link to .*, in which it lies"):
        data.open_source(str(tmp_path / "d"))


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    write_image(tmp_path / "cat" / "1.png", grey(0))
    (tmp_path / "dog").mkdir()
    original = os.scandir

    def forbidden(path):
        if str(path).startswith(str(tmp_path / "dog")):
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match=r"dog: cannot be listed: Permission denied"):
        data.open_source(str(tmp_path))


def test_what_an_archive_holds_beside_images(tmp_path):
    """Counted too; of a name that is there twice, the last one is the image."""
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        warnings.simplefilter("ignore")  # that a name is there twice
        for name, value in (("cat/1.png", 10), ("dog/1.png", 20), ("cat/1.png", 30)):
            file.write(write_image(tmp_path / "one.png", grey(value)), name)
        for name in ("cat/labels.csv", "more.zip", "__MACOSX/cat/._1.png"):
            file.writestr(name, b"no image")
    with pytest.warns(UserWarning, match=r"not used: 1 \.csv, 1 \.zip\.") as caught:
        source = data.open_source(str(tmp_path / "a.zip"))
    assert len(caught) == 1 and len(source) == 2 and source[0]["image"][0, 0, 0] == 30


def test_flat_folder_and_its_errors(tmp_path):
    """Every extension; then what cannot be one set."""
    for i, extension in enumerate(("png", "jpg", "JPEG", "bmp", "webp", "gif", "tif", "tiff", "ppm", "pnm")):
        write_image(tmp_path / "flat" / f"{i}.{extension}", grey(20 * i))
    source = data.open_source(f"folder:{tmp_path / 'flat'}")
    assert source.class_names == () and {int(source[i]["label"]) for i in range(10)} == {0}
    for i in range(10):
        assert source[i]["image"].shape == (6, 6, 3) and abs(int(source[i]["image"][3, 3, 0]) - 20 * i) <= 1
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: no images"):
        data.open_source(f"folder:{tmp_path / 'none'}")
    with pytest.raises(UserError, match="missing: no such folder"):
        data.open_source(f"folder:{tmp_path / 'missing'}")
    write_image(tmp_path / "flat" / "class" / "x.png", grey(1))
    with pytest.raises(UserError, match=r"both images \(0.png, 10 in all\) and folders"):
        data.open_source(f"folder:{tmp_path / 'flat'}")


@pytest.fixture
def damaged_folder(tmp_path):
    """0.png and 3.png are whole (values 0 and 30), 1.png is truncated, 2.png no image, 4.png gone."""
    for i in (0, 3):
        write_image(tmp_path / f"{i}.png", grey(10 * i))
    noise = write_image(tmp_path / "1.png", RNG.integers(0, 256, (32, 32, 3), np.uint8))
    noise.write_bytes(noise.read_bytes()[:1000])
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "4.png").symlink_to(tmp_path / "gone.png")
    return tmp_path


def test_bad_images_stop_by_default(damaged_folder):
    """The error names the file and the option, also through grain's threads."""
    source = data.open_source(f"folder:{damaged_folder}")
    assert source[0]["image"][0, 0, 0] == 0
    for index in (1, 2, 4):
        with pytest.raises(UserError, match=rf"{index}\.png: .*--data\.on-bad-image skip"):
            source[index]
    for threads in (0, 2):
        with pytest.raises(UserError, match=r"--data\.on-bad-image skip"):
            take(source, 1, batch_size=5, num_threads=threads)


def test_bad_images_are_skipped_when_asked(damaged_folder):
    """The next readable image takes the place, round the end; each file is warned about once, and counted."""
    source = data.open_source(str(damaged_folder), on_bad_image="skip")
    with pytest.warns(UserWarning, match="skipped") as caught:
        values = [int(source[i]["image"][0, 0, 0]) for i in (3, 0, 1, 2, 4, 1, 2, 4)]
    assert values == [30, 0, 30, 30, 0, 30, 30, 0]
    assert source.bad_files == 3 and len(caught) == 3
    fresh = data.open_source(str(damaged_folder), on_bad_image="skip")
    with pytest.warns(UserWarning) as caught, ThreadPoolExecutor(4) as pool:
        assert [e["image"][0, 0, 0] for e in pool.map(fresh.__getitem__, [1, 2, 4] * 8)] == [30, 30, 0] * 8
    assert fresh.bad_files == 3 and len(caught) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (batch,) = take(pickle.loads(pickle.dumps(fresh)), 1, batch_size=5, num_threads=0)
    assert sorted(data.to_images(batch["x_0"][:, 0, 0, 0])) == [0, 0, 30, 30, 30]
    for i in (0, 3):
        (damaged_folder / f"{i}.png").write_bytes(b"")
    source = data.open_source(str(damaged_folder), on_bad_image="skip")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="none of its 5 files"):
        source[2]


def test_every_mode_becomes_grey_or_rgb(tmp_path):
    """16 bits, palettes, transparency on white, CMYK, EXIF orientation, 32-bit values."""
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    deep = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    for image, expected in [
        (red, (255, 0, 0)),
        (red.convert("P"), (255, 0, 0)),
        (red.convert("CMYK"), (255, 0, 0)),
        (clear, (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("LA", (3, 2), (0, 51)), (204,)),
        (Image.new("1", (3, 2), 1), (255,)),
        (Image.new("L", (3, 2), 9), (9,)),
        (Image.fromarray(np.full((2, 3), 0.2, np.float32)), (51,)),
    ]:
        pixels = image_to_array(image)
        assert pixels.dtype == np.uint8 and pixels.shape == (2, 3, len(expected))
        np.testing.assert_array_equal(pixels, np.broadcast_to(expected, pixels.shape))
    deep.save(tmp_path / "deep.png")
    np.testing.assert_array_equal(data.open_source(str(tmp_path))[0]["image"][..., 0], [[0, 1, 255]])
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.info["transparency"] = 1
    np.testing.assert_array_equal(image_to_array(palette), 255)
    with pytest.raises(ValueError, match=r"0\.\.1 is understood"):
        image_to_array(Image.fromarray(np.full((2, 3), 2.0, np.float32)))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to show
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_image(tmp_path / "deep.png", picture, exif=exif)
    turned = data.open_source(str(tmp_path))[0]["image"][..., 0]
    np.testing.assert_array_equal(turned, np.rot90(picture, -1))


# NumPy archives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [("images", "labels"), ("x_train", "y_train"), ("x", "y"), ("arr_0", "arr_1")])
def test_npz(tmp_path, keys):
    """Every pair of keys; a bare path; names or numbers."""
    images = RNG.integers(0, 256, (5, 3, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", **{keys[0]: images, keys[1]: np.array([0, 1, 2, 0, 1])})
    for spec in (f"npz:{tmp_path / 'a.npz'}", str(tmp_path / "a.npz")):
        source = data.open_source(spec)
        np.testing.assert_array_equal(source[3]["image"], images[3])
        assert source.class_names == ("0", "1", "2") and data.labels_of(source).tolist() == [0, 1, 2, 0, 1]
    np.savez(tmp_path / "b.npz", images=np.linspace(0, 1, 256).reshape(1, 16, 16))
    source = data.open_source(str(tmp_path / "b.npz"))
    np.testing.assert_array_equal(source[0]["image"].ravel(), np.arange(256))
    assert source.class_names == () and source[0]["label"] == 0
    np.savez(tmp_path / "c.npz", images=images, labels=np.array([0, 1, 1, 0, 1]), class_names=["ant", "bee", "cow"])
    assert data.open_source(str(tmp_path / "c.npz")).class_names == ("ant", "bee", "cow")


def test_npz_labels(tmp_path):
    """Any array of as many: integers with names of their own, true and false, text."""
    columns = {"labels": [0, 2, 1], "class_names": ["a", "b", "c"], "age": [1, 0, 1], "age_names": ["young", "old"],
               "large": [True, False, False], "word": ["y", "x", "y"], "number": [0, 3, 0], "weight": [0.5, 1.0, 2.0]}  # fmt: skip
    np.savez(tmp_path / "a.npz", images=RNG.integers(0, 256, (3, 4, 4), np.uint8), **columns)
    for label, names, labels in [
        (None, ("a", "b", "c"), [0, 2, 1]),
        ("labels", ("a", "b", "c"), [0, 2, 1]),
        ("age", ("young", "old"), [1, 0, 1]),
        ("large", ("false", "true"), [1, 0, 0]),
        ("word", ("x", "y"), [1, 0, 1]),
        ("number", ("0", "1", "2", "3"), [0, 3, 0]),
    ]:
        with pytest.warns(UserWarning, match="not used: "):
            source = data.open_source(f"npz:{tmp_path / 'a.npz'}", label=label)
        assert source.class_names == names and data.labels_of(source).tolist() == labels
    for label, message in [
        ("wrod", r"data.label = 'wrod' is no column of labels there; it has labels \(int64\), .* Did you mean 'word'"),
        ("images", "it has labels"),
        ("weight", "weight must be integers of shape .*got float64"),
    ]:
        with pytest.raises(UserError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.open_source(f"npz:{tmp_path / 'a.npz'}", label=label)


ONE = np.zeros((2, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": ONE}, r"images, x_train.*\['pictures'\]"),
        ({"images": ONE.astype(np.int64)}, "uint8, or floats.*int64"),
        ({"images": ONE + 1.5}, "floats from 1.5 to 1.5"),
        ({"images": ONE * np.nan}, "floats from nan"),
        ({"images": ONE[0]}, r"got \(3, 3\)"),
        ({"images": np.zeros((2, 3, 3, 4), np.uint8)}, r"C = 1 or 3; got \(2, 3, 3, 4\)"),
        ({"images": ONE[:0]}, r"got \(0, 3, 3\)"),
        ({"images": ONE, "labels": np.zeros(2)}, "must be integers.*float64"),
        ({"images": ONE, "labels": np.zeros(3, int)}, r"shape \(2,\).*got int64 of shape \(3,\)"),
        ({"images": ONE, "labels": np.array([0, -1])}, "label -1 of image 1"),
        ({"images": ONE, "labels": np.array([0, 2]), "class_names": ["a", "b"]}, "0..1.*label 2 of image 1"),
        ({"images": ONE, "class_names": ["a"]}, "class_names without labels"),
        ({"images": np.array([None])}, "without pickled objects"),
    ],
)
def test_npz_errors(tmp_path, arrays, message):
    """The file, the key, what is allowed and what came."""
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=f"bad.npz.*{message}"):
        data.open_source(f"npz:{tmp_path / 'bad.npz'}")


def test_npz_that_is_none(tmp_path):
    """Missing, damaged, a single array."""
    path = tmp_path / "bad.npz"
    with pytest.raises(UserError, match="no such file"):
        data.open_source(str(path))
    np.savez_compressed(path, images=RNG.integers(0, 256, (50, 9, 9), np.uint8))
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[:-30], whole[:500] + bytes(500) + whole[1000:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            data.open_source(str(path))
    with path.open("wb") as file:
        np.save(file, ONE)
    with pytest.raises(UserError, match="a single array"):
        data.open_source(str(path))


# TensorFlow Datasets ----------------------------------------------------------------------------------------


@pytest.fixture
def tfds_dir(tmp_path, monkeypatch):
    """TFDS_DATA_DIR with the prepared sets `toy_shapes` and `bare_shapes`, and one of tfrecord files."""
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    write_tfds(tmp_path, "toy_shapes", 7)
    write_tfds(tmp_path, "bare_shapes", 3, labelled=False)
    write_tfds(tmp_path, "old_shapes", 3, file_format="tfrecord")
    return tmp_path


def test_tfds_reads_without_tensorflow(tfds_dir):
    """Images, labels, names, splits, pickling, and the pipeline; no import of tensorflow is even tried."""

    class Forbid:
        def find_spec(self, name, *_):
            assert name.partition(".")[0] != "tensorflow", "tensorflow was asked for"

    sys.meta_path.insert(0, forbid := Forbid())
    try:
        source = data.open_source("tfds:toy_shapes")
        assert len(source) == 7 and source.class_names == ("even", "odd")
        np.testing.assert_array_equal(source[3]["image"], np.full((4, 5, 3), 30))
        assert source[3]["label"] == 1 and source[3]["label"].dtype == np.int32
        assert data.labels_of(source).tolist() == [0, 1, 0, 1, 0, 1, 0]
        data.check_labels(source, 2)
        with pytest.raises(UserError, match="image 1 "):
            data.check_labels(source, 1)
        assert pickle.loads(pickle.dumps(source))[6]["image"][0, 0, 0] == 60
        assert len(data.open_source("tfds:toy_shapes:train[2:5]")) == 3
        assert len(data.open_source("tfds:toy_shapes:1.0.0:train")) == 7
        (batch,) = take(source, 1, batch_size=7)
        assert sorted(data.to_images(batch["x_0"][:, 0, 0, 0])) == list(range(0, 70, 10))
        bare = data.open_source("tfds:bare_shapes")
        assert bare.class_names == () and bare[1]["label"] == 0 and data.labels_of(bare).tolist() == [0, 0, 0]
    finally:
        sys.meta_path.remove(forbid)


@pytest.mark.parametrize(
    ("label", "names", "labels"),
    [
        ("label", ("even", "odd"), [0, 1, 0, 1, 0, 1, 0]),
        ("third", ("x", "y", "z"), [0, 1, 2, 0, 1, 2, 0]),
        ("number", ("0", "1"), [0, 0, 0, 0, 1, 1, 1]),
        ("word", ("a", "b"), [0, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_tfds_labels(tfds_dir, label, names, labels):
    """Any feature of labels; a part of its classes; none that is an image."""
    source = data.open_source("tfds:toy_shapes", label=label)
    assert source.class_names == names and data.labels_of(source).tolist() == labels
    assert [int(source[i]["label"]) for i in range(7)] == labels
    some = data.open_source("tfds:toy_shapes", label=label, classes=[names[-1]])
    assert len(some) == labels.count(len(names) - 1)
    with pytest.raises(UserError, match=r"data.label = 'image' is no column of labels there; it has .*word \(Text\)"):
        data.open_source("tfds:toy_shapes", label="image")


def test_tfds_errors(tfds_dir):
    """An unknown name, a wrong split, a wrong config, files without random access, a spec out of form."""
    for spec, message in [
        ("tfds:nobody_knows_this", "no data set of this name"),
        ("tfds:toy_shapes:validation", "no split 'validation'; it has train"),
        ("tfds:mnist/no_such_config", "cannot be opened"),
        ("tfds:old_shapes", r"as tfrecord, (?s:.*)tfds build old_shapes"),
        ("tfds:mnist:", "must have the form"),
        ("tfds:no such name", "cannot be opened"),
    ]:
        with pytest.raises(UserError, match=message):
            data.open_source(spec)


@pytest.mark.parametrize("cause", [ModuleNotFoundError("No module", name="tensorflow"), OSError("no network"), None])
def test_tfds_that_cannot_be_prepared(tfds_dir, monkeypatch, cause):
    """The error says what is missing and how to prepare; nothing is downloaded in this test."""
    import tensorflow_datasets as tfds

    def fail(*_, file_format, **__):
        assert file_format == "array_record"
        if cause is not None:
            raise cause

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError) as caught:
        data.open_source("tfds:mnist:test")
    message = str(caught.value)
    assert 'pip install "ddpm-jax[tfds-prepare]"' in message
    assert f"tfds build mnist --file_format=array_record --data_dir={tfds_dir}" in message
    expected = {
        ModuleNotFoundError: "'tensorflow' is missing",
        OSError: "no network",
        type(None): "incomplete",
    }
    assert expected[type(cause)] in message


# The registry -----------------------------------------------------------------------------------------------


def test_digits_take_nothing_after_them():
    with pytest.raises(UserError, match="digits takes nothing after it; got '8'"):
        data.open_source("digits:8")


@pytest.mark.parametrize("spec", ["", "cifar", "idx:", "folder:", "npz:", "tfds:", "gopher://x"])
def test_unknown_spec_lists_the_forms(spec):
    with pytest.raises(UserError, match=r"not known.*digits.*folder:.*idx:.*npz:.*tfds:NAME"):
        data.open_source(spec)


def test_a_label_is_for_data_with_columns(tmp_path):
    for spec in ("digits", "spiral", f"folder:{tmp_path}"):
        with pytest.raises(UserError, match=r"data\.label chooses .* hf, hf-stream, npz, tfds, webdataset .*: 'age'"):
            data.open_source(spec, label="age")


def test_unknown_option():
    """Of what to do with bad images."""
    with pytest.raises(UserError, match="on_bad_image = 'ignore'"):
        data.open_source("digits", on_bad_image="ignore")
