"""ddpm_jax.evaluation.classifier and .cache on the digits: what it recognises, and what is kept."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ddpm_jax import data
from ddpm_jax.cache import cache_folder
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import cache
from ddpm_jax.evaluation.cache import cached_classifier
from ddpm_jax.evaluation.classifier import NUM_FEATURES, augment, create, train_classifier
from ddpm_jax.evaluation.distances import frechet_distance, kernel_distance


@pytest.fixture(scope="module")
def digits():
    """(images, labels) of the real digits, in random order: 1,437 to train on, 360 held out."""
    source = data.open_source("digits")
    order = np.random.default_rng(0).permutation(len(source))
    return source.images[order], source.labels[order]


@pytest.fixture(scope="module")
def trained(digits):
    images, labels = digits
    return train_classifier(images[:1437], labels[:1437], 10)


@pytest.fixture
def few(digits):
    """A training so short that it may be repeated: (images, labels, num_classes)."""
    images, labels = digits
    return images[:64], labels[:64], 10


def leaves(classifier):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(classifier.variables)]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


def test_held_out_digits_are_recognised(trained, digits):
    images, labels = (x[1437:] for x in digits)
    predicted = trained.predict(images)
    assert predicted.shape == (360,) and predicted.dtype.kind == "i"
    accuracy = trained.accuracy(images, labels)
    assert accuracy >= 0.97 and accuracy == np.mean(predicted == labels)


def test_features_tell_the_classes_apart(trained, digits):
    """Another classifier, on nothing but the features, does as well; on shuffled ones it cannot."""
    images, labels = digits
    found = trained.features(images)
    assert found.shape == (1797, NUM_FEATURES) and found.dtype == np.float32 and found.min() == 0
    neighbours = KNeighborsClassifier(5).fit(found[:1437], labels[:1437])
    assert neighbours.score(found[1437:], labels[1437:]) > 0.96


def test_distances_of_features_see_noise_and_missing_classes(trained, digits):
    """Real digits are nearest to real digits; noise, or half of the classes gone, takes them several times as far."""
    images, labels = digits
    held_out = images[1437:]
    noise = np.random.default_rng(0).integers(-120, 121, held_out.shape)
    noisy = np.clip(held_out.astype(int) + noise, 0, 255).astype(np.uint8)
    sets = (held_out, noisy, held_out[labels[1437:] < 5])
    reference = trained.features(images[:1437])
    for distance in (frechet_distance, lambda a, b: kernel_distance(a, b, subset_size=150)[0]):
        real, *others = (distance(trained.features(x), reference) for x in sets)
        assert min(others) > 4 * abs(real), (real, others)


def test_an_image_is_seen_as_itself_in_any_company(trained, digits):
    """Statistics of the batch play no part in evaluation, nor do the rows that fill the last one."""
    images, _ = digits
    together = trained.features(images[:501])
    np.testing.assert_allclose(trained.features(images[500:501])[0], together[500], rtol=1e-4, atol=1e-5)
    assert trained.predict(images[:0]).shape == (0,)


def test_shuffled_labels_are_not_learned(digits):
    """Nothing of the labels leaks: held out, one in ten is right within four standard deviations."""
    images, labels = digits
    shuffled = np.random.default_rng(1).permutation(labels)
    found = train_classifier(images[:1000], shuffled[:1000], 10, epochs=3)
    assert abs(found.accuracy(images[1000:], shuffled[1000:]) - 0.1) < 4 * np.sqrt(0.09 / 797)


def test_the_seed_decides(few):
    first, again, other = (train_classifier(*few, seed=seed, epochs=2) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("shape", [(4, 4, 1), (9, 5, 3), (28, 28, 1), (32, 32, 3), (100, 70, 3)])
def test_images_of_any_size(shape):
    """A step and a prediction; the hidden layer sees a map of a few pixels, whatever the size."""
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    classifier = create(shape, 3)
    assert classifier.features(images).shape == (6, NUM_FEATURES)
    assert set(classifier.predict(images)) <= {0, 1, 2}
    assert classifier.variables["params"]["hidden"]["kernel"].shape[0] <= 128 * 3 * 6


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shifted_and_those_with_colour_mirrored(channels):
    """Every outcome is a window of the image with its edges repeated, up to 2 of 16 pixels off; all windows come up."""
    image = np.random.default_rng(0).integers(0, 256, (16, 20, channels), np.uint8)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {padded[i : i + 16, j : j + 20].tobytes() for i in range(5) for j in range(5)}
    mirrored = {padded[i : i + 16, j : j + 20][:, ::-1].tobytes() for i in range(5) for j in range(5)}
    found = [np.asarray(x).tobytes() for x in augment(jnp.asarray(np.stack([image] * 1000)), jax.random.key(0))]
    assert set(found) == (windows if channels == 1 else windows | mirrored)
    share = np.mean([x in mirrored for x in found])
    assert abs(share - (0 if channels == 1 else 0.5)) < 0.07


def test_what_cannot_be_trained_on(few):
    images, labels, _ = few
    for changed, message in (
        ((images.astype(np.float32), labels, 10), r"images must be uint8 of shape \(N, H, W, C\).*got float32"),
        ((images[:1], labels[:1], 10), "N at least 2"),
        ((images[..., 0], labels, 10), r"got uint8 of shape \(64, 8, 8\)"),
        ((images, labels[:5], 10), r"labels must be integers of shape \(64,\).*of shape \(5,\)"),
        ((images, labels.astype(float), 10), "labels must be integers.*got float64"),
        ((images, labels, 9), r"labels must lie in 0\.\.8; got 0\.\.9"),
        ((images, labels - 1, 10), r"got -1\.\.8"),
        ((images[:, :3], labels, 10), "at least 4 x 4"),
        ((images, labels * 0, 1), "at least 2 classes; got num_classes = 1"),
    ):
        with pytest.raises(UserError, match=message):
            train_classifier(*changed)
    with pytest.raises(UserError, match="epochs must be at least 1; got 0"):
        train_classifier(*few, epochs=0)


def test_what_cannot_be_predicted(trained, digits):
    images, labels = digits
    with pytest.raises(UserError, match=r"uint8 images of shape \(N, 8, 8, 1\); got uint8 of shape \(1797, 4, 8, 1\)"):
        trained.predict(images[:, :4])
    with pytest.raises(UserError, match="got float32"):
        trained.features(images.astype(np.float32))
    with pytest.raises(UserError, match="at least 1 image"):
        trained.accuracy(images[:0], labels[:0])
    with pytest.raises(UserError, match=r"1797 images and labels of shape \(3,\)"):
        trained.accuracy(images, labels[:3])


@pytest.fixture
def counted(monkeypatch):
    """The arguments of each training that the cache has asked for."""
    calls = []

    def train(*args, **options):
        calls.append((args, options))
        return train_classifier(*args, **options)

    monkeypatch.setattr(cache, "train_classifier", train)
    return calls


def test_what_is_kept_is_taken(few, tmp_path, counted):
    """The same arrays bit for bit without a training; anything else asked for is another file."""
    images, labels, _ = few
    first = cached_classifier(*few, epochs=1, folder=tmp_path)
    again = cached_classifier(*few, epochs=1, folder=tmp_path)
    assert len(counted) == 1 and same(first, again)
    assert np.array_equal(first.features(images), again.features(images))
    other = images.copy()
    other[5, 3, 3] ^= 1
    for index, (args, options) in enumerate(
        [
            ((other, labels, 10), {"epochs": 1}),
            ((images, np.roll(labels, 1), 10), {"epochs": 1}),
            ((images, labels, 11), {"epochs": 1}),
            ((images, labels, 10), {"epochs": 1, "seed": 1}),
            ((images, labels, 10), {"epochs": 2}),
        ]
    ):
        cached_classifier(*args, **options, folder=tmp_path)
        assert len(counted) == len(list(tmp_path.glob("*.npz"))) == index + 2


def test_another_version_is_not_taken(few, tmp_path, counted, monkeypatch):
    cached_classifier(*few, epochs=1, folder=tmp_path)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    cached_classifier(*few, epochs=1, folder=tmp_path)
    assert len(counted) == 2


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def _other_arrays(path):
    np.savez(path, x=np.zeros(3))


def _nan(path):
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["params.out.bias"][0] = np.nan
    np.savez(path, **arrays)


def _one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _pickled(path):
    np.savez(path, x=np.array([{}], object))


@pytest.mark.parametrize(
    "damage", [_cut, _flip, _other_arrays, _one_array, _nan, _pickled, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_file_is_replaced(few, tmp_path, counted, damage):
    first = cached_classifier(*few, epochs=1, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = dict(np.load(path))
    damage(path)
    with warnings.catch_warnings(action="error"):
        assert same(cached_classifier(*few, epochs=1, folder=tmp_path), first)
    assert len(counted) == 2 and list(tmp_path.iterdir()) == [path]
    with np.load(path) as archive:
        assert archive.files == list(whole) and all(np.array_equal(archive[name], whole[name]) for name in whole)


def test_a_folder_that_cannot_be_made_is_warned_about(few, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"not kept for the next evaluation: .*file.* cannot be written"):
        found = cached_classifier(*few, epochs=1, folder=tmp_path / "file" / "classifiers")
    assert same(found, train_classifier(*few, epochs=1))


def test_where_classifiers_are_kept(few, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    assert cache_folder("classifiers") == tmp_path / "cache" / "classifiers"
    cached_classifier(*few, epochs=1)
    assert len(list(cache_folder("classifiers").glob("*.npz"))) == 1
    monkeypatch.delenv("DDPM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("classifiers") == tmp_path / ".cache" / "ddpm-jax" / "classifiers"


def test_the_cache_refuses_what_training_refuses(few, tmp_path):
    images, labels, _ = few
    with pytest.raises(UserError, match="labels must lie in"):
        cached_classifier(images, labels, 5, folder=tmp_path)
