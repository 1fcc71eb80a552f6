"""Data sets of TensorFlow Datasets, read from array_record files without TensorFlow."""

import dataclasses
import os
import re
from typing import Any

import numpy as np

from ddpm_jax.data.columns import chosen, numbered
from ddpm_jax.data.source import FORMS, Form, Told
from ddpm_jax.errors import UserError

_SPEC = re.compile(r"(?P<name>[^:\[\]]+?(:\d+\.\d+\.\d+)?)(:(?P<split>[A-Za-z_].*))?")


class TfdsSource(Told):
    """One split of a prepared data set, decoded when asked for.

    Args:
        name: what to call it in messages.
        data: what `builder.as_data_source` returns, images decoded.
        class_names: the names of the classes; empty where there are no labels.
        undecoded: the same split with images left as bytes, for reading labels alone.
        column: the feature of labels.
        numbers: all labels, int32 (N,), where that feature is none of classes; None: it is.
    """

    labels_within_class_names = True  # ClassLabel encodes nothing else

    def __init__(
        self,
        name: str,
        data: Any,
        class_names: tuple[str, ...],
        undecoded: Any,
        column: str = "label",
        numbers: np.ndarray | None = None,
    ):
        self.name = name
        self.class_names = class_names
        self._data = data
        self._undecoded = undecoded
        self._column = column
        self._numbers = numbers

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example at `index`."""
        index = range(len(self))[index]
        example = self._data[index]
        if self._numbers is not None:
            return {"image": example["image"], "label": self._numbers[index]}
        return {"image": example["image"], "label": np.int32(example[self._column] if self.class_names else 0)}

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 (N,), without decoding images."""
        if self._numbers is not None:
            return self._numbers
        if not self.class_names:
            return np.zeros(len(self), np.int32)
        return np.fromiter((self._undecoded[i][self._column] for i in range(len(self))), np.int32, len(self))


def open_tfds(spec: str, label: str | None = None) -> TfdsSource:
    """Open `NAME[/config][:version][:split]`, split "train" unless named; prepare it where that is needed.

    Data is looked for in $TFDS_DATA_DIR, else in ~/tensorflow_datasets. label: the feature of labels: classes, integers, true and
    false, or text; None: "label", where it is one of classes.

    Raises:
        UserError: an unknown name, config or split; data that is not prepared and cannot be; no feature
            "image" of uint8 with 1 or 3 channels; no feature of labels of that name.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UserError(f"tfds:{spec} must have the form tfds:NAME[/config][:split], as in tfds:cifar10:test.")
    name, split = match["name"], match["split"] or "train"
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"tfds:{spec} needs TensorFlow Datasets (not TensorFlow itself):\n"
            "    pip install tensorflow-datasets array_record"
        ) from error
    builder = _builder(tfds, name)
    if not builder.is_prepared():
        _prepare(builder, name)
        builder = _builder(tfds, name)  # anew: the files decide on the format
    features = builder.info.features
    _check_image(tfds, features, name)
    column = "label" if label is None else chosen(label, _possible(tfds, features), f"tfds:{name}")
    try:
        data = builder.as_data_source(split=split)
    except NotImplementedError as error:  # tfrecord files have no random access
        raise UserError(
            f"tfds:{name} is prepared in {builder.data_path} as {_format(builder)}, without random access. "
            f"Remove that folder and prepare it as array_record:\n{_how_to_prepare(name)}"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(f"tfds:{name} has no split {split!r}; it has {', '.join(builder.info.splits)}.") from error
    if len(data) == 0:
        raise UserError(f"tfds:{name}: the split {split!r} is empty.")
    undecoded = dataclasses.replace(data, decoders={"image": tfds.decode.SkipDecoding()})
    feature, where = features[column] if column in list(features) else None, f"tfds:{spec}"
    if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes:
        return TfdsSource(where, data, tuple(feature.names), undecoded, column)
    if label is None:
        return TfdsSource(where, data, (), undecoded)
    cells = [undecoded[i][column] for i in range(len(data))]
    values = np.array([cell.decode() if isinstance(cell, bytes) else cell for cell in cells])
    numbers, class_names = numbered(values, None, f"{where}: {column}")
    return TfdsSource(where, data, class_names, undecoded, column, numbers)


def _builder(tfds: Any, name: str) -> Any:
    try:
        return tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"tfds:{name}: TensorFlow Datasets knows no data set of this name, and none is prepared in "
            f"{os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')}. "
            "The names: https://www.tensorflow.org/datasets/catalog/overview"
        ) from error
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"tfds:{name} cannot be opened: {error}") from error


def _prepare(builder: Any, name: str) -> None:
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # whatever a data set's own script raises; nothing is swallowed
        missing = f"the package {error.name!r} is missing" if isinstance(error, ImportError) else f"{error}"
        raise UserError(
            f"tfds:{name} is not prepared in {builder.data_path}, and preparing it failed: {missing}. "
            f"Preparing needs TensorFlow and the network, once:\n{_how_to_prepare(name)}"
        ) from error
    if not builder.is_prepared():
        raise UserError(f"tfds:{name}: {builder.data_path} is incomplete. Remove it, then:\n{_how_to_prepare(name)}")


def _how_to_prepare(name: str) -> str:
    data_dir = os.environ.get("TFDS_DATA_DIR")
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f'    pip install "ddpm-jax[tfds-prepare]"\n    tfds build {name} --file_format=array_record{where}'


def _format(builder: Any) -> str:
    return str(getattr(builder.info.file_format, "value", builder.info.file_format))


def _check_image(tfds: Any, features: Any, name: str) -> None:
    names = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
    image = features["image"] if "image" in names else None
    if not isinstance(image, tfds.features.Image):
        raise UserError(f'tfds:{name} has no image as its feature "image"; the features are {", ".join(names)}.')
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise UserError(
            f'tfds:{name}: the feature "image" must be uint8 with 1 or 3 channels; '
            f"got {image.np_dtype.__name__} of shape {image.shape}."
        )


def _possible(tfds: Any, features: Any) -> dict[str, str]:
    """The features that may be labels, each with its type."""
    kinds = tfds.features.ClassLabel, tfds.features.Text
    return {
        name: type(feature).__name__
        for name, feature in features.items()
        if isinstance(feature, kinds) or (feature.shape == () and feature.np_dtype in (np.bool_, np.int32, np.int64))
    }


FORMS["tfds"] = Form(
    "tfds:NAME[/config][:split]", "TensorFlow Datasets", lambda rest, how: open_tfds(rest, how.label), columns=True
)
