"""hf: and hf-stream:, the sources of the library `datasets`: local parquet and arrow, labels, order, resumption, mistakes."""

import pickle
import re
import sys

import numpy as np
import pytest
from data_builders import png, take

from ddpm_jax import data
from ddpm_jax.data import grouped, hf_stream
from ddpm_jax.errors import UserError

datasets = pytest.importorskip("datasets")

BOTH = pytest.mark.parametrize("form", ["hf", "hf-stream"])
FEATURES = {
    "photo": datasets.Image(),
    "parity": datasets.ClassLabel(names=["even", "odd"]),
    "number": datasets.Value("int64"),
    "word": datasets.Value("string"),
    "large": datasets.Value("bool"),
    "weight": datasets.Value("float64"),
}


@pytest.fixture(autouse=True)
def alone(tmp_path_factory, monkeypatch):
    """No network, and a cache of this test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def table(size=12, without=(), **changed):
    """Images 4 x 5 of grey level 10 i, labelled in several ways."""
    columns = {
        "photo": [{"bytes": png(10 * i), "path": None} for i in range(size)],
        "parity": [i % 2 for i in range(size)],
        "number": [i // 4 for i in range(size)],
        "word": ["abc"[i % 3] for i in range(size)],
        "large": [i > 5 for i in range(size)],
        "weight": [i / 2 for i in range(size)],
    }
    features = {name: kind for name, kind in FEATURES.items() if name not in without}
    given = {name: column for name, column in (columns | changed).items() if name in features}
    return datasets.Dataset.from_dict(given, features=datasets.Features(features))


@pytest.fixture
def parquet(tmp_path):
    """Two files of 12 and 7 rows, in row groups of 3."""
    table(12).to_parquet(tmp_path / "data" / "train-00000.parquet", batch_size=3)
    table(7).to_parquet(tmp_path / "data" / "train-00001.parquet", batch_size=3)
    table(4).to_parquet(tmp_path / "data" / "test-00000.parquet")
    return tmp_path / "data"


def greys(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


BOTH_FILES = [*range(0, 120, 10), *range(0, 70, 10)]


@BOTH
def test_parquet(parquet, form):
    """A folder with its splits, a pattern, one file; images, labels and names; pickled as workers want it."""
    source = data.open_source(f"{form}:{parquet}")
    assert greys(source) == BOTH_FILES and source[3]["image"].shape == (4, 5, 3)
    assert source.class_names == ("even", "odd") and source[3]["label"] == 1 and source[3]["label"].dtype == np.int32
    assert data.labels_of(source).tolist() == [i % 2 for i in [*range(12), *range(7)]]
    data.check_labels(source, 2)
    for spec, size in (
        (f"{parquet}:test", 4),
        (f"{parquet}/train-*.parquet", 19),
        (f"{parquet}/test-00000.parquet", 4),
    ):
        assert len(data.open_source(f"{form}:{spec}")) == size
    assert pickle.loads(pickle.dumps(source))[17]["image"][0, 0, 0] == 50
    assert source[-1]["image"][0, 0, 0] == 60
    with pytest.raises(IndexError):
        source[19]


def test_a_part_of_a_split(parquet):
    assert greys(data.open_source(f"hf:{parquet}:train[2:5]")) == [20, 30, 40]


def test_arrow(tmp_path):
    """What save_to_disk writes, alone and by splits, and its files."""
    table().save_to_disk(tmp_path / "alone")
    datasets.DatasetDict(test=table(3), validation=table().select([7, 2])).save_to_disk(tmp_path / "splits")
    assert greys(data.open_source(f"hf:{tmp_path / 'alone'}")) == list(range(0, 120, 10))
    chosen = data.open_source(f"hf:{tmp_path / 'splits'}:validation")
    assert greys(chosen) == [70, 20] and data.labels_of(chosen).tolist() == [1, 0]
    (file,) = (tmp_path / "alone").glob("*.arrow")
    assert len(data.open_source(f"hf:{file}")) == 12
    with pytest.raises(UserError, match="has the splits test, validation; name one"):
        data.open_source(f"hf:{tmp_path / 'splits'}")
    with pytest.raises(UserError, match="no split 'train'; it has test, validation"):
        data.open_source(f"hf:{tmp_path / 'splits'}:train")


def test_a_folder_of_images_with_their_attributes(tmp_path):
    """As `datasets` reads one: metadata.csv beside the images, whose columns are labels."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(10 * i))
    (tmp_path / "metadata.csv").write_text("file_name,smiling,age\n0.png,1,3\n1.png,0,4\n2.png,1,5\n")
    source = data.open_source(f"hf:{tmp_path}", label="smiling")
    assert greys(source) == [0, 10, 20] and data.labels_of(source).tolist() == [1, 0, 1]
    assert data.open_source(f"hf:{tmp_path}").class_names == ()


@BOTH
@pytest.mark.parametrize(
    ("label", "names", "labels"),
    [
        (None, ("even", "odd"), [0, 1, 0, 1, 0, 1, 0]),
        ("parity", ("even", "odd"), [0, 1, 0, 1, 0, 1, 0]),
        ("number", ("0", "1"), [0, 0, 0, 0, 1, 1, 1]),
        ("word", ("a", "b", "c"), [0, 1, 2, 0, 1, 2, 0]),
        ("large", ("false", "true"), [0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_the_column_of_labels(parquet, form, label, names, labels):
    source = data.open_source(f"{form}:{parquet / 'train-00001.parquet'}", label=label)
    assert source.class_names == names and data.labels_of(source).tolist() == labels
    assert [int(source[i]["label"]) for i in range(7)] == labels


@BOTH
def test_columns_that_pyarrow_alone_wrote(tmp_path, form):
    """Images as plain bytes, "label" as integers: nothing says that they are, but their types and the name."""
    import pyarrow
    import pyarrow.parquet

    columns = {"id": [7, 8, 9], "image": [png(0), png(10), png(20)], "label": [2, 0, 1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    source = data.open_source(f"{form}:{tmp_path / 'a.parquet'}")
    assert greys(source) == [0, 10, 20] and source.class_names == ("0", "1", "2")
    assert data.labels_of(source).tolist() == [2, 0, 1]


# The order --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("threads", [0, 3])
def test_resumed_run_repeats_the_uninterrupted_one(parquet, form, threads):
    """Bit for bit, through epochs, whatever the number of threads; every example comes once an epoch."""
    options = {"batch_size": 5, "flip": True, "seed": 3}
    whole = take(data.open_source(f"{form}:{parquet}"), 19, num_threads=2, **options)
    seen = np.concatenate([data.to_images(batch["x_0"][:, 0, 0, 0]) for batch in whole]).reshape(5, 19)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.sort(BOTH_FILES), (5, 1)))
    assert len({tuple(epoch) for epoch in seen}) == 5
    for start in (1, 4, 13, 18):
        (resumed,) = take(data.open_source(f"{form}:{parquet}"), 1, start_step=start, num_threads=threads, **options)
        for key in ("x_0", "label"):
            np.testing.assert_array_equal(resumed[key], whole[start][key])


def test_a_table_is_in_the_order_of_any_other_source(parquet):
    source = data.open_source(f"hf:{parquet}")
    images = np.stack([source[i]["image"] for i in range(19)])
    expected = take(data.source.ArraySource("same", images, data.labels_of(source), ["even", "odd"]), 3, batch_size=7)
    for ours, theirs in zip(take(source, 3, batch_size=7), expected, strict=True):
        np.testing.assert_array_equal(ours["x_0"], theirs["x_0"])
        np.testing.assert_array_equal(ours["label"], theirs["label"])


@pytest.mark.parametrize("rows", [None, np.array([0, 1, 2]), np.array([5, 9])])
def test_a_row_group_is_read_once_while_its_window_lasts(parquet, monkeypatch, rows):
    """With windows of 6 examples, of 2 or 3 groups: an epoch of 7 groups costs few more reads than 7, not 19."""
    read, original = [], hf_stream.RowGroups._read
    monkeypatch.setattr(grouped, "WINDOW", 6)
    monkeypatch.setattr(hf_stream.RowGroups, "_read", lambda self, *group: read.append(group) or original(self, *group))
    source = data.open_source(f"hf-stream:{parquet}")
    assert source.groups.tolist() == [3, 3, 3, 3, 3, 3, 1] and not read
    take(source, 1, batch_size=19, num_threads=0, **({} if rows is None else {"rows": rows}))
    assert len(read) == len(set(read)) and len(read) <= (7 if rows is None else len(rows))
    held = sum(future.result().__len__() for future in source._read._kept.values())
    assert held <= 2 * 6 + 3


def test_some_classes_of_a_stream(parquet):
    """The subset keeps the groups, of which some may be empty."""
    source = data.open_source(f"hf-stream:{parquet}", label="word", classes=["b"])
    assert source.groups.sum() == len(source) == 6 and source.groups.tolist() == [1, 1, 1, 1, 1, 1, 0]
    (batch,) = take(source, 1, batch_size=6)
    assert sorted(data.to_images(batch["x_0"][:, 0, 0, 0])) == [10, 10, 40, 40, 70, 100]


# Mistakes ---------------------------------------------------------------------------------------------------


@BOTH
def test_columns_that_do_not_do(tmp_path, form):
    def refused(message, changed, label=None, **columns):
        path = tmp_path / "bad.parquet"
        changed(table(3, **columns)).to_parquet(path, batch_size=3)  # unless told, older ones divide by the rows
        with pytest.raises(UserError, match=message):
            data.open_source(f"{form}:{path}", label=label)

    drop = lambda *names: lambda rows: rows.remove_columns(list(names))  # noqa: E731
    same = drop()
    refused(r"no column of images; it has parity \(ClassLabel\), number \(integers\), word \(text\)", drop("photo"))
    refused(
        "several columns of images, photo, other",
        lambda r: r.add_column("other", r.to_dict()["photo"], feature=datasets.Image()),
    )
    refused(
        "several columns of labels, parity, age; choose one with --data.label",
        lambda r: r.add_column("age", [0, 1, 1], feature=datasets.ClassLabel(names=["young", "old"])),
    )
    refused(r"data.label = 'weight' is no column of labels there; it has parity \(ClassLabel\), number", same, "weight")
    refused("Did you mean 'number'", same, "numbr")
    refused(r"parity must lie in 0\.\.1.*label -1 of row 2", same, parity=[0, 1, -1])
    refused(r"number must lie in 0\..*label -4 of row 1", same, "number", number=[0, -4, 1])
    refused("word must have a label in every row; row 1 has none", same, "word", word=["a", None, "b"])
    refused("has no rows|corresponds to no data", lambda rows: rows.select([]))


@BOTH
def test_bad_images(tmp_path, form):
    """The row and the file are named; or the next one is taken."""
    cells = [content and {"bytes": content, "path": None} for content in (png(0), b"no image", None, png(30))]
    kinds = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": cells}, features=kinds).to_parquet(tmp_path / "a.parquet")
    spec = f"{form}:{tmp_path / 'a.parquet'}"
    source = data.open_source(spec)
    for row, reason in ((1, "of no known image format"), (2, "the cell is empty")):
        with pytest.raises(
            UserError, match=rf"a\.parquet, row {row}: not a readable image.*{reason}.*on-bad-image skip"
        ):
            source[row]
    with pytest.warns(UserWarning, match="row 1: not a readable image"):
        assert greys(data.open_source(spec, on_bad_image="skip")) == [0, 30, 30, 30]


@BOTH
def test_places_where_nothing_is(parquet, form):
    with pytest.raises(UserError, match="no such file"):
        data.open_source(f"{form}:{parquet}/valid-*.parquet")
    with pytest.raises(UserError, match=r"no such file.*\.parquet, \.arrow"):
        data.open_source(f"{form}:{parquet}/nowhere.parquet")
    with pytest.raises(UserError, match="no path here, and the Hub says of nobody/knows-this"):
        data.open_source(f"{form}:nobody/knows-this")
    with pytest.raises(UserError, match="valid"):
        data.open_source(f"{form}:{parquet}:valid")
    (parquet / "train-00001.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        data.open_source(f"{form}:{parquet}")


def test_what_a_stream_does_not_take(parquet, tmp_path):
    with pytest.raises(UserError, match=r"no split 'train\[2:5\]'; it has t"):
        data.open_source(f"hf-stream:{parquet}:train[2:5]")
    table(3).save_to_disk(tmp_path / "arrow")
    (file,) = (tmp_path / "arrow").glob("*.arrow")
    with pytest.raises(UserError, match=r"must consist of \.parquet files; got .*\.arrow\. Take hf:"):
        data.open_source(f"hf-stream:{file}")
    table(3, without=["photo"]).to_parquet(parquet / "train-00001.parquet")
    with pytest.raises(UserError, match=r"train-00001\.parquet has no column photo, which .*train-00000\.parquet has"):
        data.open_source(f"hf-stream:{parquet}")


def test_a_row_group_that_is_gone(parquet):
    """A failure while it trains is one line, and the group is asked for again."""
    source = data.open_source(f"hf-stream:{parquet / 'train-00000.parquet'}")
    whole = (parquet / "train-00000.parquet").read_bytes()
    (parquet / "train-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00000\.parquet: its row group 2 cannot be read: .*No such file"):
        source[7]
    (parquet / "train-00000.parquet").write_bytes(whole)
    assert source[7]["image"][0, 0, 0] == 70


@pytest.mark.parametrize(
    ("rest", "asked", "split"),
    [
        ("mnist", ("mnist", None), "train"),
        ("owner/name", ("owner/name", None), "train"),
        ("owner/name:test[:5]", ("owner/name", None), "test[:5]"),
        ("owner/na.me-1/its-config:test", ("owner/na.me-1", "its-config"), "test"),
    ],
)
def test_names_of_the_hub(rest, asked, split, monkeypatch):
    """What `datasets` is asked for, of which nothing is here."""
    heard = []

    class Builder:
        config = type("Config", (), {"data_files": {"train": [], "test": []}})

        def download_and_prepare(self):
            pass

        def as_dataset(self, split):
            heard.append(split)
            return table(3)

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *asked: heard.append(asked) or Builder())
    assert greys(data.open_source(f"hf:{rest}")) == [0, 10, 20]
    assert heard == [asked, split]


def test_files_of_the_hub_are_read_where_they_lie(parquet, monkeypatch):
    """By URL, as `datasets` names those of the Hub: footers, labels, and then the row groups that are asked for, none twice."""
    import fsspec

    memory, read = fsspec.filesystem("memory"), []
    for path in parquet.glob("train-*"):
        memory.pipe(f"/hub/{path.name}", path.read_bytes())
    urls = [f"memory://hub/train-0000{k}.parquet" for k in range(2)]

    class Builder:
        config = type("Config", (), {"data_files": {"train": urls}})

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: Builder())
    original = hf_stream.RowGroups._read
    monkeypatch.setattr(hf_stream.RowGroups, "_read", lambda self, *group: read.append(group) or original(self, *group))
    source = data.open_source("hf-stream:owner/name")
    assert not read and source[4]["image"][0, 0, 0] == 40 and source[13]["label"] == 1 and source[5]["label"] == 1
    assert read == [(urls[0], 1), (urls[1], 0)]
    assert fsspec.get_filesystem_class("hf").__name__ == "HfFileSystem"


def test_without_the_library(monkeypatch, parquet):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for form in ("hf", "hf-stream"):
        with pytest.raises(UserError, match=re.escape('pip install "ddpm-jax[hf]"')):
            data.open_source(f"{form}:{parquet}")


def test_colons(parquet, tmp_path):
    """A path with a colon of its own is one where it exists."""
    parquet.rename(tmp_path / "data:new")
    assert len(data.open_source(f"hf:{tmp_path}/data:new")) == 19
