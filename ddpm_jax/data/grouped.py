"""The order of examples that are read in groups of neighbours: groups at random, then examples within a window of that order."""

import functools
from typing import Any

import numpy as np

WINDOW = 4096
"""Examples, neighbours in the order of the groups, among which they are shuffled."""


class GroupedOrder:
    """A shuffle that is made anew in every epoch, and a function of seed, epoch and place alone.

    The groups are put into a random order; the sequence of their examples is cut into windows of `WINDOW`, the last one of an epoch
    shorter, and each window is shuffled. Every example comes once an epoch; those of a batch come from the few groups of a window,
    or of two.

    Args:
        groups: int64 (G,), how many neighbours in a row each group holds.
        seed: of the order, 0 .. 2**32 - 1.
        window: examples in a window.
    """

    def __init__(self, groups: np.ndarray, seed: int, window: int):
        self._groups, self._seed, self._window = np.asarray(groups, np.int64), seed, window
        self._starts = np.cumsum(self._groups) - self._groups
        self.length = int(self._groups.sum())
        self._fresh()

    def _fresh(self) -> None:
        # windows are asked for in turn, by a few threads that are not far apart
        self._of_epoch = functools.lru_cache(2)(self._order_of_groups)
        self._of_window = functools.lru_cache(8)(self._order_in_window)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_of_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def __call__(self, place: int) -> int:
        """The example at a place of the endless sequence of epochs."""
        epoch, place = divmod(place, self.length)
        window, within = divmod(place, self._window)
        position = window * self._window + int(self._of_window(epoch, window)[within])
        order, ends = self._of_epoch(epoch)
        group = int(np.searchsorted(ends, position, "right"))
        return int(self._starts[order[group]] + position - (ends[group] - self._groups[order[group]]))

    def _order_of_groups(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        # 0 is no window's number: NumPy takes (a, b) and (a, b, 0) for the same seed
        order = np.random.default_rng((self._seed, epoch, 0)).permutation(len(self._groups))
        return order, np.cumsum(self._groups[order])

    def _order_in_window(self, epoch: int, window: int) -> np.ndarray:
        size = min(self._window, self.length - window * self._window)
        return np.random.default_rng((self._seed, epoch, 1 + window)).permutation(size)


def grouped_order(dataset: Any, groups: np.ndarray, seed: int) -> Any:
    """A `grain.MapDataset` in a `GroupedOrder`, to be repeated without end."""
    import grain

    order = GroupedOrder(groups, seed, WINDOW)

    class Grouped(grain.MapDataset):
        def __len__(self) -> int:
            return order.length

        def __getitem__(self, index: Any) -> Any:
            if isinstance(index, slice):
                return self.slice(index)
            return self._parent[order(index)]

    return Grouped(dataset)
