"""ddpm_jax.data against closed forms: order of batches, geometry, and every source, whole and damaged."""

import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data_builders import write_idx, write_image, write_tfds
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data.decoding import image_to_array
from ddpm_jax.data.geometry import fit
from ddpm_jax.data.source import ArraySource
from ddpm_jax.errors import UserError

RNG = np.random.default_rng(0)


def numbered(size, side=4):
    """A source whose image i has the value i at its left half and 0 at its right; its label is i."""
    images = np.zeros((size, side, side), np.uint8)
    images[:, :, : side // 2] = np.arange(size)[:, None, None]
    return ArraySource("numbered", images, np.arange(size), [str(i) for i in range(size)])


def take(source, count, **options):
    """The first `count` batches of a small pipeline."""
    iterator = data.batches(source, **{"shape": (4, 4, 1), "num_threads": 2, **options})
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def labels(taken):
    """The labels of batches, in one row."""
    return np.concatenate([batch["label"] for batch in taken])


# The pipeline -----------------------------------------------------------------------------------------------


def test_batches_have_the_promised_form():
    """Dtypes, shapes, contiguity, and x / 127.5 - 1 of the very image the label names."""
    (batch,) = take(numbered(30), 1, batch_size=7, shape=(4, 4, 3))
    assert batch["x_0"].shape == (7, 4, 4, 3) and batch["x_0"].dtype == np.float32
    assert batch["x_0"].flags.c_contiguous and batch["label"].dtype == np.int32
    expected = batch["label"].astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(batch["x_0"][:, 0, 0, :], np.repeat(expected[:, None], 3, axis=1))
    np.testing.assert_array_equal(batch["x_0"][:, :, 2:, :], -1)


def test_every_epoch_covers_every_image_once_in_another_order():
    """Batches of 7 from 30 images run on from one epoch to the next and lose none."""
    order = labels(take(numbered(30), 30, batch_size=7)).reshape(7, 30)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(30), (7, 1)))
    assert len({tuple(epoch) for epoch in order}) == 7
    assert tuple(order[0]) != tuple(range(30))
    assert not np.array_equal(order[0], labels(take(numbered(30), 30, batch_size=1, seed=1)))


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_resumed_run_repeats_the_uninterrupted_one(threads):
    """Bit for bit, flips included, whatever the number of threads."""
    options = {"batch_size": 4, "flip": True, "seed": 3}
    whole = take(numbered(10), 12, num_threads=2, **options)
    for start in (0, 1, 5, 11):
        (resumed,) = take(numbered(10), 1, start_step=start, num_threads=threads, **options)
        for key in ("x_0", "label"):
            np.testing.assert_array_equal(resumed[key], whole[start][key])


def test_flip_is_a_fair_coin_drawn_anew():
    """2000 flips lie within 4 standard deviations of a half; an image is not always flipped the same way."""
    taken = take(numbered(41), 50, batch_size=40, flip=True)
    image = np.concatenate([batch["x_0"] for batch in taken])
    index = labels(taken)
    value = index.astype(np.float32)[:, None] / 127.5 - 1
    flipped = image[:, 0, 0, 0] == -1
    shown = np.where(flipped[:, None], image[:, 0, 2:, 0], image[:, 0, :2, 0])
    np.testing.assert_array_equal(shown, np.repeat(value, 2, axis=1))
    drawn = flipped[index > 0]  # image 0 is its own mirror image
    assert abs(drawn.mean() - 0.5) < 4 * 0.5 / np.sqrt(drawn.size)
    assert 0 < flipped[index == 7].mean() < 1
    plain = take(numbered(41), 50, batch_size=40)
    np.testing.assert_array_equal(labels(plain), index)  # flips do not change the order


def test_to_images_undoes_the_scaling():
    """All 256 values come back; what lies outside is clipped."""
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(data.to_images(values.astype(np.float32) / 127.5 - 1), values)
    np.testing.assert_array_equal(data.to_images([-3.0, 3.0, 0.0039]), [0, 255, 128])
    assert data.to_images([0.0]).dtype == np.uint8


def test_epoch_steps_rounds_up():
    """30 images: 5 batches of 7 show all of them, 4 do not."""
    assert [data.epoch_steps(numbered(30), size) for size in (1, 7, 15, 30)] == [30, 5, 2, 1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 31),
        ("seed", -1),
        ("seed", 2**32),
        ("start_step", -1),
        ("num_threads", -1),
    ],
)
def test_wrong_arguments_are_named_at_the_call(option, value):
    """Before any batch is asked for."""
    with pytest.raises(UserError, match=rf"{option}.*= {value}\b"):
        data.batches(numbered(30), **{"shape": (4, 4, 1), "batch_size": 5, option: value})


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("digits", {"shape": (8, 8, 2)}, "channels must be 1 .grey. or 3 .RGB.; channels = 2"),
        ("digits", {"shape": (0, 0, 1)}, "image_size must be at least 1; image_size = 0"),
        ("digits", {"shape": (2,)}, r"'digits' holds images, which need a network of square ones; its shape is \(2,\)"),
        ("digits", {"shape": (8, 8, 1), "stream": True}, "stream is for points.*'digits' holds images"),
        ("spiral:30", {"shape": (8, 8, 1)}, r"'spiral:30' holds points in the plane.*\(8, 8, 1\).*mlp"),
        ("spiral:30", {"shape": (2,), "flip": True}, "flip is for images; 'spiral:30' holds points"),
    ],
)
def test_shapes_that_do_not_fit_the_data(source, options, says):
    with pytest.raises(UserError, match=says):
        data.batches(data.open_source(source), batch_size=5, **options)


# Points -----------------------------------------------------------------------------------------------------


def test_points_are_standardised_and_their_statistics_undo_it():
    source = data.open_source("spiral:300")
    assert len(source) == 300 and source.class_names == ()
    epoch = np.concatenate([batch["x_0"] for batch in take(source, 3, shape=(2,), batch_size=100)])
    assert epoch.dtype == np.float32
    assert abs(epoch.mean()) < 1e-6 and abs(epoch.std(ddof=1) - 1) < 1e-6
    back = data.scaling_of(source).undo(epoch)
    order = np.lexsort(back.T), np.lexsort(source.points.T)
    np.testing.assert_allclose(back[order[0]], source.points[order[1]], atol=1e-6)  # every point once
    assert not np.array_equal(epoch[:100], source.scaling.apply(source.points[:100]))


def test_points_of_another_seed_are_others_of_the_same_shape():
    ours, held_out = data.PointSource("disc-grid", 50, seed=0), data.PointSource("disc-grid", 50, seed=1)
    assert not np.array_equal(ours.points, held_out.points)
    np.testing.assert_array_equal(ours.points, data.open_source("disc-grid:50").points)


def test_streamed_points_are_never_seen_again():
    seen = np.concatenate(
        [batch["x_0"] for batch in take(data.open_source("spiral:30"), 9, shape=(2,), batch_size=10, stream=True)]
    )
    assert len(np.unique(seen, axis=0)) == 90
    assert data.open_source("spiral:30").scaling.std == pytest.approx(
        seen.std() * data.open_source("spiral:30").scaling.std, rel=0.3
    )


@pytest.mark.parametrize("options", [{}, {"stream": True}])
def test_stacked_batches_are_the_same_batches(options):
    source = data.open_source("spiral:30")
    options |= {"shape": (2,), "batch_size": 7, "start_step": 4}
    alone = np.stack([batch["x_0"] for batch in take(source, 6, **options)])
    stacked = np.concatenate([batch["x_0"] for batch in take(source, 2, stacked=3, **options)])
    assert stacked.shape == (6, 7, 2)
    np.testing.assert_array_equal(stacked, alone)


@pytest.mark.parametrize("spec", ["spiral:many", "spiral:1", "disc-grid:-5"])
def test_a_number_of_points_that_makes_no_set(spec):
    with pytest.raises(UserError, match=spec):
        data.open_source(spec)


# Scaling and classes ----------------------------------------------------------------------------------------


def test_images_in_the_unit_interval():
    source = data.open_source("digits")
    scaling = data.scaling_of(source, "unit")
    (batch,) = take(source, 1, shape=(8, 8, 1), batch_size=50, scaling=scaling)
    assert batch["x_0"].min() == 0 and batch["x_0"].max() == 1
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(scaling.to_images(scaling.apply(values)), values)
    with pytest.raises(UserError, match="scale must be one of signed, unit; got 'half'"):
        data.scaling_of(source, "half")


def test_a_subset_of_the_classes_keeps_their_numbers():
    whole, some = data.open_source("digits"), data.open_source("digits", classes=("3", "7"))
    assert some.class_names == whole.class_names and set(some.labels) == {3, 7}
    assert len(some) == int(np.isin(whole.labels, [3, 7]).sum())
    for index in (0, 5, len(some) - 1):
        element = some[index]
        assert element["label"] == some.labels[index]
        np.testing.assert_array_equal(element["image"], whole[int(some.indices[index])]["image"])


def test_classes_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"'digits' has no class 'ship'; it has 0, 1, 2, 3"):
        data.open_source("digits", classes=("3", "ship"))
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 0, 2, 2]))
    with pytest.raises(UserError, match="holds no image of the classes 1"):
        data.open_source(str(tmp_path / "x.npz"), classes=("1",))
    np.savez(tmp_path / "bare.npz", images=np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"classes 1 are asked for, and .* has no classes"):
        data.open_source(str(tmp_path / "bare.npz"), classes=("1",))


# Geometry ---------------------------------------------------------------------------------------------------


def test_right_size_is_untouched_and_centre_is_cut():
    """Rows and columns are numbered, so that the cut can be read off."""
    image = np.stack(np.broadcast_arrays(np.arange(4)[:, None], np.arange(9)[None], 7), axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(fit(image, 4, 3), image[:, 2:6])  # offset round(2.5) = 2
    np.testing.assert_array_equal(fit(image.transpose(1, 0, 2), 4, 3), image.transpose(1, 0, 2)[2:6])
    np.testing.assert_array_equal(fit(image[:, :4], 4, 3), image[:, :4])


@pytest.mark.parametrize(
    ("shape", "size"),
    [((20, 40), 10), ((40, 20), 10), ((5, 8), 40), ((1, 50), 8), ((33, 57), 32), ((90, 70), 16)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_the_centre_in_the_centre(shape, size, channels):
    """A picture of two halves: flat on both sides of the middle, but for the reach of the bicubic kernel."""
    image = np.zeros((*shape, 1), np.uint8)
    image[:, shape[1] // 2 :] = 200
    out = fit(image, size, channels)
    assert out.shape == (size, size, channels) and out.dtype == np.uint8
    reach = 2 * max(1, size // min(shape)) + 1
    np.testing.assert_array_equal(out[:, : max(0, size // 2 - reach)], 0)
    np.testing.assert_array_equal(out[:, size // 2 + reach :], 200)


def test_shrinking_is_antialiased():
    """A fine checkerboard becomes its mean, not one of its two values."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(fit(board, 8, 1).astype(int) - 127.5).max() < 12


def test_channels():
    """One is repeated; three become 0.299 R + 0.587 G + 0.114 B."""
    grey = RNG.integers(0, 256, (6, 6, 1), np.uint8)
    np.testing.assert_array_equal(fit(grey, 6, 3), np.repeat(grey, 3, -1))
    colour = RNG.integers(0, 256, (6, 6, 3), np.uint8)
    np.testing.assert_allclose(fit(colour, 6, 1)[..., 0], colour @ [0.299, 0.587, 0.114], atol=0.51)


# Labels -----------------------------------------------------------------------------------------------------


def test_check_labels():
    """All within: silence. One outside: its index and the range. None at all: said so."""
    source = numbered(12)
    np.testing.assert_array_equal(data.labels_of(source), np.arange(12))
    data.check_labels(source, 12)
    with pytest.raises(UserError, match=r"0\.\.9 .*image 10 .*label 10"):
        data.check_labels(source, 10)
    source.labels[3] = -1
    with pytest.raises(UserError, match=r"image 3 .*label -1.*from 0"):
        data.check_labels(source, 12)
    with pytest.raises(UserError, match="num_classes = 0"):
        data.check_labels(source, 0)
    with pytest.raises(UserError, match="'bare' has none"):
        data.check_labels(ArraySource("bare", np.zeros((2, 4, 4), np.uint8)), 10)


def test_labels_of_a_source_without_the_shortcut():
    """A source of someone else needs only length, items, name and class names."""

    class Plain:
        name, class_names = "plain", ("a", "b", "c")

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": np.zeros((4, 4, 1), np.uint8), "label": np.int32(range(3)[index])}

    assert data.labels_of(Plain()).tolist() == [0, 1, 2]
    assert sorted(labels(take(Plain(), 1, batch_size=3))) == [0, 1, 2]


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
    for spec in (f"folder:{tmp_path}", str(tmp_path)):
        source = data.open_source(spec)
        assert source.class_names == ("cat", "dog") and data.labels_of(source).tolist() == [0, 0, 1]
        assert [source[i]["image"][0, 0, 0] for i in range(3)] == [10, 20, 30]
        assert pickle.loads(pickle.dumps(source))[2]["label"] == 1
    data.check_labels(source, 2)
    with pytest.raises(UserError, match="image 2 "):
        data.check_labels(source, 1)


def test_flat_folder_and_its_errors(tmp_path):
    """Every extension; then what cannot be one set."""
    for i, extension in enumerate(("png", "jpg", "JPEG", "bmp", "webp", "gif", "tif", "tiff")):
        write_image(tmp_path / "flat" / f"{i}.{extension}", grey(20 * i))
    source = data.open_source(f"folder:{tmp_path / 'flat'}")
    assert source.class_names == () and {int(source[i]["label"]) for i in range(8)} == {0}
    for i in range(8):
        assert source[i]["image"].shape == (6, 6, 3) and abs(int(source[i]["image"][3, 3, 0]) - 20 * i) <= 1
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: no images"):
        data.open_source(f"folder:{tmp_path / 'none'}")
    with pytest.raises(UserError, match="missing: no such folder"):
        data.open_source(f"folder:{tmp_path / 'missing'}")
    write_image(tmp_path / "flat" / "class" / "x.png", grey(1))
    with pytest.raises(UserError, match=r"both images \(0.png, 8 in all\) and folders"):
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


@pytest.mark.parametrize("spec", ["", "cifar", "idx:", "folder:", "npz:", "tfds:", "digits:8", "gopher://x"])
def test_unknown_spec_lists_the_forms(spec):
    """With an example of each."""
    with pytest.raises(UserError, match=r"(?s)not known.*digits.*idx:.*folder:.*npz:.*tfds:cifar10"):
        data.open_source(spec)


def test_unknown_option():
    """Of what to do with bad images."""
    with pytest.raises(UserError, match="on_bad_image = 'ignore'"):
        data.open_source("digits", on_bad_image="ignore")


def test_import_is_light():
    """Importing the package and opening a source loads neither jax nor grain nor TensorFlow."""
    code = (
        "import sys; from ddpm_jax import data; data.open_source('digits'); "
        "print(sorted({'jax', 'grain', 'tensorflow', 'tensorflow_datasets', 'torch'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
