"""Spectra over training on disk: what the pages draw with a slider."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightly_collapse.io.files import atomic_write

_FORMAT = "lightly-collapse spectra 1"
_MOST_ROWS = 200
_MOST_VALUES = 256

FILE_NAME = "collapse-spectra.json"
"""The file, beside `collapse.csv`."""


def spread_indices(
    length: int, limit: int = _MOST_VALUES, dense: int = 64, ends: Sequence[int] = ()
) -> list[int]:
    """Up to about `limit` of the first `length` indices: all, or the first, then evenly spaced.

    Args:
        length: how many there are.
        limit: how many to choose.
        dense: how many of the first to choose one by one.
        ends: lengths of shorter lines, of which the last index is chosen too.

    Returns:
        The indices in ascending order, the first and the last among them.

    Examples:
        >>> spread_indices(9, limit=5, dense=2)
        [0, 1, 2, 5, 8]
    """
    if length <= limit:
        return list(range(length))
    spaced = np.linspace(dense, length - 1, limit - dense).round().astype(int).tolist()
    return sorted({*range(dense), *spaced, *(end - 1 for end in ends if end)})


@dataclass(frozen=True)
class TrainingSpectra:
    """The spectra of layers at several steps of a training.

    Attributes:
        key: what the steps are, such as `epoch`.
        steps: in ascending order.
        spectra: at each of them, by layer, the singular values of the centred features by their
            index; of wide layers not every index is there.
    """

    key: str
    steps: list[int]
    spectra: list[dict[str, dict[int, float]]]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TrainingSpectra":
        """Read what `SpectraFile` wrote.

        Args:
            path: the file.

        Returns:
            The spectra.

        Raises:
            ValueError: if the file is none of spectra.
            OSError: if it cannot be read.
        """
        return _read(path)[0]


def _read(path: str | os.PathLike[str]) -> tuple[TrainingSpectra, int]:
    """The spectra, and every how many readings were kept."""
    try:
        content = json.loads(Path(path).read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError("its format is another")
        rows = sorted(content["rows"], key=lambda row: int(row["at"]))
        spectra = TrainingSpectra(
            str(content["key"]),
            [int(row["at"]) for row in rows],
            [
                {
                    str(name): dict(
                        zip(map(int, line["index"]), map(float, line["value"]), strict=True)
                    )
                    for name, line in row["layers"].items()
                }
                for row in rows
            ],
        )
        return spectra, max(1, int(content["stride"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold spectra that a CollapseMonitor or CollapseTracker wrote: {error}"
        ) from error


class SpectraFile:
    """`collapse-spectra.json`: the spectra of every reading, at most 200 of them.

    Where there would be more, every second is dropped, so that a long training is covered evenly
    and the file stays small. The newest reading is always there.

    Args:
        path: the file; its folder is made when the first row is written.
        key: what tells rows apart, such as `step`.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "collapse-spectra.json")
        >>> SpectraFile(path, "step").add(5, {"backbone": [3.0, 1.0]})
        >>> TrainingSpectra.load(path).spectra
        [{'backbone': {0: 3.0, 1: 1.0}}]
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self.path = Path(path)
        self._key = key
        self._rows: dict[int, str] = {}  # as JSON: a reading is encoded once
        self._stride = 1
        self._readings = 0
        self._beside: int | None = None  # the newest row, where it is not one of every `_stride`

    def resume(self, before: int) -> None:
        """Take the file's rows with a key below `before`, where training goes on from there.

        A file that cannot be read is replaced.

        Args:
            before: with 0, nothing is taken: a new run replaces the file.
        """
        self._rows, self._stride, self._readings, self._beside = {}, 1, 0, None
        if not before or not self.path.is_file():
            return
        try:
            found, stride = _read(self.path)
        except (ValueError, OSError):
            return
        if found.key == self._key:
            self._stride = stride
            for at, layers in zip(found.steps, found.spectra, strict=True):
                if at < before:
                    self._rows[at] = _encoded(at, layers)

    def add(self, at: int, layers: Mapping[str, Sequence[float]], *, write: bool = True) -> None:
        """Add a reading and write the file.

        Args:
            at: the step or epoch; a reading of the same is replaced.
            layers: singular values in descending order, by layer.
            write: whether this process writes.

        Raises:
            OSError: if the file cannot be written.
        """
        if not layers:
            return
        if self._beside is not None:
            self._rows.pop(self._beside, None)
        self._beside = at if self._readings % self._stride else None
        self._readings += 1
        chosen = {
            name: {i: values[i] for i in spread_indices(len(values))}
            for name, values in layers.items()
        }
        self._rows[at] = _encoded(at, chosen)
        if len(self._rows) > _MOST_ROWS:
            self._rows = dict(list(self._rows.items())[::2])
            self._stride *= 2
        if not write:
            return
        head = json.dumps({"format": _FORMAT, "key": self._key, "stride": self._stride})[:-1]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = f'{head}, "rows": [\n' + ",\n".join(self._rows.values()) + "\n]}\n"
        atomic_write(self.path, text.encode())


def _encoded(at: int, layers: Mapping[str, Mapping[int, float]]) -> str:
    lines = {
        name: {"index": list(line), "value": [float(f"{v:.5g}") for v in line.values()]}
        for name, line in layers.items()
    }
    return json.dumps({"at": at, "layers": lines})
