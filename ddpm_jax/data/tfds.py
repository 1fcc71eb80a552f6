"""Data sets of TensorFlow Datasets, read from array_record files without TensorFlow."""

import dataclasses
import os
import re
from typing import Any

import numpy as np

from ddpm_jax.data.source import FORMS, Form, Told
from ddpm_jax.errors import UserError

_SPEC = re.compile(r"(?P<name>[^:\[\]]+?(:\d+\.\d+\.\d+)?)(:(?P<split>[A-Za-z_].*))?")


class TfdsSource(Told):
    """One split of a prepared data set, decoded when asked for.

    Args:
        name: what to call it in messages.
        data: what `builder.as_data_source` returns, images decoded.
        class_names: the names of the feature "label"; empty where it is none of classes.
        undecoded: the same split with images left as bytes, for reading labels alone.
    """

    labels_within_class_names = True  # ClassLabel encodes nothing else

    def __init__(self, name: str, data: Any, class_names: tuple[str, ...], undecoded: Any):
        self.name = name
        self.class_names = class_names
        self._data = data
        self._undecoded = undecoded

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example at `index`."""
        example = self._data[range(len(self))[index]]
        return {"image": example["image"], "label": np.int32(example["label"] if self.class_names else 0)}

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 (N,), without decoding images."""
        if not self.class_names:
            return np.zeros(len(self), np.int32)
        return np.fromiter((self._undecoded[i]["label"] for i in range(len(self))), np.int32, len(self))


def open_tfds(spec: str) -> TfdsSource:
    """Open `NAME[/config][:version][:split]`, split "train" unless named; prepare it where that is needed.

    Data is looked for in $TFDS_DATA_DIR, else in ~/tensorflow_datasets.

    Raises:
        UserError: an unknown name, config or split; data that is not prepared and cannot be; no feature
            "image" of uint8 with 1 or 3 channels.
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
    class_names = _check_features(tfds, builder.info.features, name)
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
    return TfdsSource(f"tfds:{spec}", data, class_names, undecoded)


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


def _check_features(tfds: Any, features: Any, name: str) -> tuple[str, ...]:
    names = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
    image = features["image"] if "image" in names else None
    if not isinstance(image, tfds.features.Image):
        raise UserError(f'tfds:{name} has no image as its feature "image"; the features are {", ".join(names)}.')
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise UserError(
            f'tfds:{name}: the feature "image" must be uint8 with 1 or 3 channels; '
            f"got {image.np_dtype.__name__} of shape {image.shape}."
        )
    label = features["label"] if "label" in names else None
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        return ()
    return tuple(label.names)


FORMS["tfds"] = Form("tfds:NAME[/config][:split]", "TensorFlow Datasets", lambda rest, _: open_tfds(rest))
