"""Small data sets on disk for the tests of ddpm_jax.data, and the batches made of them."""

import dataclasses
import gzip
import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax import data


def write_idx(path: Path, array: np.ndarray, *, magic: int | None = None, cut=0, declare=None) -> Path:
    """An IDX file of unsigned bytes; `cut` drops bytes at its end, `declare` is a false shape."""
    shape = array.shape if declare is None else declare
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape) if magic is None else magic, *shape)
    data = header + array.astype(np.uint8).tobytes()
    data = data[: len(data) - cut]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_image(path: Path, array: np.ndarray, **options) -> Path:
    """An image file of the format its extension says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def png(value: int) -> bytes:
    """A PNG of 4 x 5 pixels in one grey, RGB."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tfds(root: Path, name: str, size: int, *, labelled=True, file_format="array_record") -> None:
    """A prepared data set of images 4 x 5, grey level 10 i, label i % 2, third i % 3, number i // 4, word a or b; no TensorFlow."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    records = []
    for i in range(size):
        feature = {
            "image": tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[png(10 * i)])),
            "label": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[i % 2])),
            "third": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[i % 3])),
            "number": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[i // 4])),
            "word": tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[b"ab"[i % 2 : i % 2 + 1]])),
        }
        example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
        records.append(example.SerializeToString())
    shard = folder / f"{name}-train.{file_format}-00000-of-00001"
    if file_format == "array_record":
        writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    else:
        shard.write_bytes(b"".join(records))
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "third": tfds.features.ClassLabel(names=["x", "y", "z"]),
        "number": tfds.features.Scalar(np.int64),
        "word": tfds.features.Text(),
    }
    if labelled:
        features["label"] = tfds.features.ClassLabel(names=["even", "odd"])
    else:
        features["label"] = tfds.features.Scalar(np.int64)
    num_bytes = sum(map(len, records))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[size], num_bytes=num_bytes)],
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
    )


def read(options):
    """Options of `data.batches` of which some are those of its reading."""
    names = [field.name for field in dataclasses.fields(data.Reading) if field.name in options]
    reading = data.Reading(**{name: options.pop(name) for name in names})
    return {**options, "reading": reading}


def take(source, count, **options):
    """The first `count` batches of a small pipeline."""
    iterator = data.batches(source, **read({"shape": (4, 4, 1), "num_threads": 2, **options}))
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()
