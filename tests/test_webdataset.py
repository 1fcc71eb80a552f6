"""webdataset:, shards of tar: layouts as the package webdataset writes them, the index, labels, order, and what is damaged."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from data_builders import png, take

from ddpm_jax import data
from ddpm_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DDPM_CACHE", str(folder))
    return folder / "webdataset"


def write_shard(path, examples):
    """A shard of {name: bytes, text or what JSON holds} for each example, in the layout of webdataset.TarWriter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for members in examples:
            for name, content in members.items():
                raw = (
                    content
                    if isinstance(content, bytes)
                    else (content if isinstance(content, str) else json.dumps(content)).encode()
                )
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(raw), 0o444
                archive.addfile(member, io.BytesIO(raw))
    return path


def examples(numbers, **options):
    return [
        {
            f"{i:06d}.cls": str(i % 3),
            f"{i:06d}.json": {"word": "abc"[i % 3], "large": i > 4, "weight": 0.5, "mixed": i or "none"},
            f"{i:06d}.png": png(10 * i),
            f"{i:06d}.txt": f"picture {i}",
        }
        for i in numbers
    ]


@pytest.fixture
def shards(tmp_path):
    """9, 2 and 8 examples."""
    for number, numbers in enumerate((range(9), range(9, 11), range(11, 19))):
        write_shard(tmp_path / "shards" / f"train-{number:03d}.tar", examples(numbers))
    return tmp_path / "shards"


def greys(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def test_patterns(shards):
    """Braces, wildcards and a folder; in the order of the names."""
    for pattern in ("train-{000..002}.tar", "tra{in,in}-00{0,1,2}.tar", "train-*.tar", ""):
        source = data.open_source(f"webdataset:{shards / pattern}")
        assert greys(source) == list(range(0, 190, 10))
        assert source.class_names == ("0", "1", "2") and data.labels_of(source).tolist() == [i % 3 for i in range(19)]
    assert greys(data.open_source(f"webdataset:{shards}/train-{{002,001}}.tar")) == [*range(110, 190, 10), 90, 100]
    assert len(data.open_source(f"webdataset:{shards}/train-001.tar")) == 2
    assert pickle.loads(pickle.dumps(source))[9]["image"][0, 0, 0] == 90 and source[-1]["label"] == 0
    with pytest.raises(IndexError):
        source[19]


@pytest.mark.parametrize(
    ("label", "names", "first"),
    [
        ("cls", ("0", "1", "2"), [0, 1, 2]),
        ("word", ("a", "b", "c"), [0, 1, 2]),
        ("large", ("false", "true"), [0, 0, 0]),
        ("txt", tuple(sorted(f"picture {i}" for i in range(19))), [0, 1, 11]),
        ("mixed", tuple(sorted(["none", *map(str, range(1, 19))])), [18, 0, 10]),
    ],
)
def test_labels(shards, label, names, first):
    source = data.open_source(f"webdataset:{shards}", label=label)
    assert source.class_names == names and data.labels_of(source)[:3].tolist() == first


def test_images_alone(tmp_path):
    """Without labels; folders within the archive, names with several dots, hidden members, a second picture."""
    members = [
        {"a/1.png": png(10), "a/1.seg.png": png(99)},
        {"b/1.x.JPG": png(20)},
        {"._b.png": b"", "README": b"hello", "c.png": png(30)},
    ]
    write_shard(tmp_path / "a.tar", members)
    source = data.open_source(f"webdataset:{tmp_path / 'a.tar'}")
    assert greys(source) == [10, 20, 30] and source.class_names == () and source[2]["label"] == 0


def test_what_the_package_writes(tmp_path):
    """Its own TarWriter, encoders and all, read beside its own reader."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for i in range(5):
            image = np.full((4, 5, 3), 10 * i, np.uint8)
            sink.write({"__key__": f"at/{i}", "png": image, "cls": i % 2, "json": {"word": "xy"[i % 2]}})
    source = data.open_source(f"webdataset:{tmp_path / 'a.tar'}")
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("rgb8"))
    for i, example in enumerate(theirs):
        np.testing.assert_array_equal(source[i]["image"], example["png"])
        assert source[i]["label"] == example["cls"]
    assert len(source) == len(theirs) == 5
    assert data.open_source(f"webdataset:{tmp_path / 'a.tar'}", label="word").class_names == ("x", "y")


@pytest.mark.parametrize("threads", [0, 3])
def test_resumed_run_repeats_the_uninterrupted_one(shards, threads):
    """Bit for bit, and in the order of any other source of 19 images."""
    options = {"batch_size": 5, "flip": True, "seed": 3}
    source = data.open_source(f"webdataset:{shards}")
    whole = take(source, 12, num_threads=2, **options)
    images = np.stack([source[i]["image"] for i in range(19)])
    expected = take(data.source.ArraySource("same", images, data.labels_of(source), "abc"), 12, **options)
    for start in range(12):
        np.testing.assert_array_equal(whole[start]["x_0"], expected[start]["x_0"])
    for start in (1, 4, 11):
        (resumed,) = take(data.open_source(f"webdataset:{shards}"), 1, start_step=start, num_threads=threads, **options)
        for key in ("x_0", "label"):
            np.testing.assert_array_equal(resumed[key], whole[start][key])


def test_the_index_is_kept_and_made_anew_where_the_shard_changed(shards, cache, monkeypatch):
    spec = f"webdataset:{shards}"
    data.open_source(spec)
    kept = sorted(cache.iterdir())
    assert len(kept) == 3
    opened, original = [], tarfile.open
    monkeypatch.setattr(
        tarfile, "open", lambda path, *rest, **options: opened.append(path) or original(path, *rest, **options)
    )
    assert greys(data.open_source(spec)) == list(range(0, 190, 10)) and not opened
    data.open_source(spec, label="word")
    assert len(opened) == 3
    write_shard(shards / "train-001.tar", examples(range(3)))
    opened.clear()
    assert len(data.open_source(spec)) == 9 + 3 + 8 and opened == [str(shards / "train-001.tar")]
    for damage in (b"", b"[]", b'{"names": 3}', b'{"names": [], "offsets": [], "sizes": [], "labels": [1]}'):
        for path in cache.iterdir():
            path.write_bytes(damage)
        assert len(data.open_source(spec)) == 20


def test_a_cache_that_cannot_be_written(shards, cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file")
    with pytest.warns(UserWarning, match="is not kept for the next command"):
        assert len(data.open_source(f"webdataset:{shards}/train-001.tar")) == 2


# Mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [100, 700, 3000, 1])
def test_a_shard_that_is_cut_off(shards, cut):
    path = shards / "train-001.tar"
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    end = {1: last.offset_data + 1}.get(cut, cut)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match=r"train-001\.tar: not a whole tar archive"):
        data.open_source(f"webdataset:{shards}")


@pytest.mark.parametrize("content", [b"", b"no archive", b"x" * 5000])
def test_a_shard_that_is_none(shards, content):
    (shards / "train-001.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"train-001\.tar: not a whole tar archive"):
        data.open_source(f"webdataset:{shards}")


def test_a_compressed_shard(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(UserError, match=r"a\.tar: compressed, .*gunzip it"):
        data.open_source(f"webdataset:{tmp_path}/a.tar")


@pytest.mark.parametrize(
    ("members", "label", "message"),
    [
        ({"1.cls": "1"}, None, r"a\.tar: the example 1 must have one image; it has 1\.cls"),
        (
            {"1.png": png(0), "1.jpg": png(0), "1.cls": "1"},
            None,
            r"must have one image; it has several: 1\.png, 1\.jpg",
        ),
        ({"1.png": png(0), "1.PNG": png(0)}, None, r"two members are called 1\.PNG"),
        (
            {"1.png": png(0), "1.json": {"a": 1}},
            None,
            r"a\.tar/1\.png has no label \(cls\), and other examples have one",
        ),
        ({"1.png": png(0), "1.json": {"b": 1}}, "a", r"1\.png has no label \(a\), and other"),
        (
            {"1.png": png(0), "1.json": {"a": 1.5}},
            "a",
            r"a\.tar/1: a must be an integer, true or false, or text; got 1\.5",
        ),
        ({"1.png": png(0), "1.json": {"a": [1]}}, "a", r"got \[1\]"),
        ({"1.png": png(0), "1.json": "{"}, "a", r"a\.tar/1\.json cannot be read"),
        ({"1.png": png(0), "1.json": "[1]"}, "a", r"a\.tar/1\.json must hold an object; got \[1\]"),
        ({"1.png": png(0), "1.json": b"\xff"}, "a", r"1\.json holds no text"),
        ({"1.png": png(0), "1.cls": "-1"}, None, r"labels must lie in 0\.\..*label -1 of .*a\.tar/1\.png"),
        ({"1.png": png(0), "1.cls": "1" * 30}, None, "must be integers, true or false, or text; got float64"),
        ({"1.png": png(0), "1.cls": "1"}, "nothing", r"data\.label = 'nothing' is no member .*0\.png has cls, a"),
    ],
)
def test_examples_that_do_not_do(tmp_path, members, label, message):
    write_shard(tmp_path / "a.tar", [{"0.png": png(0), "0.cls": "0", "0.json": {"a": 2}}, members])
    with pytest.raises(UserError, match=message):
        data.open_source(f"webdataset:{tmp_path}/a.tar", label=label)


def test_bad_images(shards):
    write_shard(shards / "train-001.tar", [{"1.png": png(10)}, {"2.png": b"no image"}, {"3.png": png(30)}])
    spec = f"webdataset:{shards}/train-001.tar"
    with pytest.raises(UserError, match=r"train-001\.tar/2\.png: not a readable image"):
        data.open_source(spec)[1]
    with pytest.warns(UserWarning, match=r"train-001\.tar/2\.png: not a readable image.*skipped"):
        assert greys(data.open_source(spec, on_bad_image="skip")) == [10, 30, 30]


def test_a_shard_that_changes_after_it_was_opened(shards):
    source = data.open_source(f"webdataset:{shards}/train-001.tar")
    os.truncate(shards / "train-001.tar", 3000)
    with pytest.raises(UserError, match="its shard has become shorter"):
        source[1]
    (shards / "train-001.tar").unlink()
    with pytest.raises(UserError, match="its shard is gone"):
        source[0]


def test_places_where_nothing_is(shards):
    for pattern, message in [
        ("valid-*.tar", "no shard is there"),
        ("train-{000..003}.tar", r"train-003\.tar: no such file"),
        ("train-{3..1}.tar", r"\{3\.\.1\} must rise"),
        ("train-{0..99999999}.tar", "by less than"),
    ]:
        with pytest.raises(UserError, match=message):
            data.open_source(f"webdataset:{shards / pattern}")
    for url in ("https://somewhere/train.tar", "pipe:curl somewhere", "s3://bucket/{0..3}.tar"):
        with pytest.raises(UserError, match="must lie in a folder of this machine"):
            data.open_source(f"webdataset:{url}")
    write_shard(shards / "empty.tar", [])
    with pytest.raises(UserError, match="hold no examples"):
        data.open_source(f"webdataset:{shards}/empty.tar")
