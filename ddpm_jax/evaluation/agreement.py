"""Class agreement: how often a classifier trained on the real images sees in a sample the class that was asked for."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """How well samples are recognised, beside how well real images are."""

    samples: float
    """Share of the samples in which the classifier sees the class asked for, 0..1."""
    real: float
    """The classifier's accuracy on real images that it was not trained on, 0..1."""
    by_class: dict[int, float]
    """Share recognised among the samples of each class."""


def class_agreement(
    images: np.ndarray, labels: np.ndarray, real_images: np.ndarray, real_labels: np.ndarray, *, seed: int = 0
) -> Agreement:
    """Train a support vector machine (RBF kernel) on four fifths of the real images and show it the samples.

    images: uint8 (N, H, W, C) samples of the classes labels (N,); real_images, real_labels: the same for real ones. Meant for
    up to some ten thousand small images.
    """
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    train_x, test_x, train_y, test_y = train_test_split(
        _flat(real_images), real_labels, test_size=0.2, random_state=seed, stratify=real_labels
    )
    classifier = SVC(C=10.0, gamma="scale").fit(train_x, train_y)
    right = classifier.predict(_flat(images)) == labels
    return Agreement(
        samples=float(right.mean()),
        real=float(classifier.score(test_x, test_y)),
        by_class={int(label): float(right[labels == label].mean()) for label in np.unique(labels)},
    )


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255
