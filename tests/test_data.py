"""ddpm_jax.data.batches against closed forms: order, flips, points, scaling, classes, geometry, labels."""

import pickle

import numpy as np
import pytest
from data_builders import read, take

from ddpm_jax import data
from ddpm_jax.data.geometry import fit
from ddpm_jax.data.grouped import GroupedOrder
from ddpm_jax.data.source import ArraySource
from ddpm_jax.errors import UserError

RNG = np.random.default_rng(0)


def numbered(size, side=4):
    """A source whose image i has the value i at its left half and 0 at its right; its label is i."""
    images = np.zeros((size, side, side), np.uint8)
    images[:, :, : side // 2] = np.arange(size)[:, None, None]
    return ArraySource("numbered", images, np.arange(size), [str(i) for i in range(size)])


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


@pytest.mark.parametrize("groups", [[3, 1, 0, 5, 2, 7, 1, 1, 4, 6], [30], [1] * 30, [29, 1]])
@pytest.mark.parametrize("window", [1, 7, 30, 100])
def test_groups_stay_together_within_a_window(groups, window):
    """Every example once an epoch; the examples of a window are those of a run of whole groups, but for its first and last."""
    order = GroupedOrder(np.array(groups), 3, window)
    epochs = np.array([order(place) for place in range(90)]).reshape(3, 30)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(30), (3, 1)))
    group_of = np.repeat(np.arange(len(groups)), groups)
    for epoch in epochs:
        seen: dict[int, int] = {}
        for start in range(0, 30, window):
            found = group_of[epoch[start : start + window]]
            whole = [group for group in set(found) if np.sum(found == group) == groups[group]]
            assert len(set(found)) - len(whole) <= 2
            for group in found:
                seen[group] = seen.get(group, 0) + 1
        assert seen == {group: size for group, size in enumerate(groups) if size}
    assert len({tuple(epoch) for epoch in epochs}) == 3 or (len(groups) <= 2 and window == 1)
    again = pickle.loads(pickle.dumps(order))
    assert [again(place) for place in (0, 47, 89)] == [epochs.ravel()[place] for place in (0, 47, 89)]
    assert GroupedOrder(np.array(groups), 3, window)(50) == epochs.ravel()[50]


def test_within_a_window_any_order_is_as_likely():
    """chi squared of the place at which the first example of a window of 6 comes, over 3,000 epochs: 5 degrees of freedom."""
    order = GroupedOrder(np.array([2, 2, 2]), 0, 6)
    places = [[order(6 * epoch + place) for place in range(6)].index(0) for epoch in range(3000)]
    counts = np.bincount(places, minlength=6)
    assert np.sum((counts - 500) ** 2 / 500) < 20.5  # once in a thousand seeds


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


def test_stretched_images_span_what_can_be_shown():
    """Each by itself, over all its channels, whatever its brightness; one of a single value has nothing to show."""
    ramp = np.linspace(-7, 9, 8, dtype=np.float32).reshape(1, 2, 2, 2)
    shown = data.stretched(np.concatenate([ramp, 3 * ramp + 40, np.full_like(ramp, 0.5)])[None])
    assert shown.dtype == np.uint8 and shown.shape == (1, 3, 2, 2, 2)
    np.testing.assert_array_equal(shown[0, 0].ravel(), np.rint(np.linspace(0, 255, 8)))
    np.testing.assert_array_equal(shown[0, 1], shown[0, 0])
    assert not shown[0, 2].any()


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
        data.batches(numbered(30), **read({"shape": (4, 4, 1), "batch_size": 5, option: value}))


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
    with pytest.raises(UserError, match=r"class 'ship' is none of digits's 10 classes: 0, 1, 2, 3"):
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
