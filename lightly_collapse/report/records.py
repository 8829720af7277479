"""What was measured of a model: as data, as a file, as a table, in sentences."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from typing_extensions import Self

from lightly_collapse._arguments import (
    Count,
    ImageSize,
    NonNegativeFloat,
    PositiveFloat,
    Seed,
    Share,
)
from lightly_collapse.io.files import atomic_write
from lightly_collapse.io.records import read_json, read_record, read_value
from lightly_collapse.report.glossary import GLOSSARY

_Path = str | os.PathLike[str]
_FORMAT = "lightly-collapse report 1"
# What the readers of a report take out of `settings` and `source`; the rest is only shown.
_SETTINGS: Mapping[str, Any] = {
    "collapse_rtol": Share,
    "seed": Seed,
    "limit": Count,
    "image_size": ImageSize,
    "mean": tuple[float, float, float],
    "std": tuple[PositiveFloat, PositiveFloat, PositiveFloat],
}
_SOURCE = ("model", "checkpoint", "data", "prefix", "reference", "objective")


@dataclass(frozen=True)
class LayerRecord:
    """The features of one layer.

    Attributes:
        name: of the layer; `output` is what the model returns.
        dimensions: width of the features.
        scalars: value by name, those of `lightly_collapse.metrics.Reading`; None where it could not
            be computed.
        problems: why a value is None, by name.
        spectrum: singular values of the centred features, in descending order.
        lid: local intrinsic dimensionality of every sampled row.
        intervals: lower and upper end of a scalar's 95 % interval, by name; those that are known.
        corrected: scalars without the bias of few rows, by name; those whose correction is known.
        doubtful: why an interval is not to be relied on, by name; see `report.intervals`.
    """

    name: str
    dimensions: Count
    scalars: dict[str, float | None]
    problems: dict[str, str]
    spectrum: list[NonNegativeFloat]
    lid: list[float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    corrected: dict[str, float] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)

    def value(self, name: str) -> float:
        """One of the scalars.

        Raises:
            ValueError: if it could not be computed, with the reason.
        """
        value = self.scalars[name]
        if value is None:
            raise ValueError(f"{name} of {self.name}: {self.problems.get(name, 'not a number')}")
        return value

    def interval(self, name: str) -> str:
        """The 95 % interval of a scalar as tables show it, in brackets where doubtful."""
        if name not in self.intervals:
            return "–"
        text = " to ".join(map(format_value, self.intervals[name]))
        return f"({text})" if name in self.doubtful else text

    def doubts(self) -> list[str]:
        """Which intervals are not to be relied on, a sentence for each reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.doubtful.items():
            if name in self.intervals:
                reasons.setdefault(reason, []).append(GLOSSARY[name].title)
        return [
            f"The 95 % intervals of {', '.join(names)} of the {self.name} are not to be relied on: "
            f"{reason}."
            for reason, names in reasons.items()
        ]

    @property
    def normalized_eigenvalues(self) -> list[float]:
        """Eigenvalues of the covariance divided by the largest, in descending order."""
        return [s**2 for s in relative(self.spectrum)]


@dataclass(frozen=True)
class WeightRecord:
    """The weight of one layer: the fields of `lightly_collapse.metrics.WeightSpectrum`.

    Attributes:
        name: of the parameter.
        shape: filters and fan-in.
        normalized_eigenvalues: of W^T W, in descending order.
        orthogonality_residual: squared distance from orthonormal filters.
        stable_rank: None for a zero weight.
        condition_number: None for a zero or singular weight.
    """

    name: str
    shape: tuple[Count, Count]
    normalized_eigenvalues: list[float]
    orthogonality_residual: float
    stable_rank: float | None
    condition_number: float | None


@dataclass(frozen=True)
class ModelRecord:
    """What was measured of one model, without the means to draw it; see `CollapseReport`.

    Attributes:
        name: what the model is called in tables and figures.
        layers: the measured layers, the model's output first.
        weights: the weights of the model.
        settings: how it was measured, such as `collapse_rtol`.
        source: what was measured: model, checkpoint, data, as far as known.
        notes: what a reader must know, such as images that could not be read.
        accuracy: of classifiers on the frozen representation, in [0, 1]: `knn` and `linear`; empty
            where there were no labels.
    """

    name: str
    layers: list[LayerRecord]
    weights: list[WeightRecord]
    settings: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)

    @property
    def orthogonality_residual(self) -> float | None:
        """Mean over the weights of the residual by the smaller side; None where there is none.

        The residual of W is its squared distance from orthonormal filters, ||W W^T - I||_F^2 on the
        smaller side.
        """
        if not self.weights:
            return None
        return sum(w.orthogonality_residual / min(w.shape) for w in self.weights) / len(
            self.weights
        )

    def layer(self, name: str) -> LayerRecord:
        """The record of a layer.

        Raises:
            ValueError: if it was not measured; the message names those that were.
        """
        for record in self.layers:
            if record.name == name:
                return record
        raise ValueError(
            f"layer must be one of {', '.join(r.name for r in self.layers)}, got {name!r}"
        )

    @property
    def output(self) -> LayerRecord:
        """The layer that is read as the representation: the first."""
        return self.layers[0]

    def save(self, path: _Path) -> None:
        """Write the report as JSON, atomically.

        Args:
            path: the file.

        Raises:
            OSError: if it cannot be written.
        """
        record = {"format": _FORMAT, **asdict(self)}
        atomic_write(path, json.dumps(record, indent=1, allow_nan=False).encode())

    @classmethod
    def load(cls, path: _Path) -> Self:
        """Read what `save` wrote.

        Args:
            path: the file.

        Returns:
            The report.

        Raises:
            ValueError: if the file is no report.
            OSError: if it cannot be read.
        """
        try:
            record = read_json(path)
            found = record.pop("format", None) if isinstance(record, dict) else None
            if found != _FORMAT:
                what = f", it is {found[:60]!r}" if isinstance(found, str) else ""
                raise ValueError(f"its format is not {_FORMAT!r}{what}")
            report = read_record(cls, record)
            _check_contents(report)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{path} must be a report written by `lightly-collapse measure`: {reason}"
            ) from error
        return report

    def verdict(self) -> list[str]:
        """What the numbers say about the representation, in plain sentences."""
        out = self.output
        rtol = self.settings["collapse_rtol"]
        width, rows = out.dimensions, int(out.scalars.get("rows") or 0)
        sentences = []
        collapsed = out.scalars.get("collapsed_dimensions")
        rank = out.scalars.get("effective_rank")
        if collapsed is None or rank is None:
            reason = next(iter(out.problems.values()), "")
            return [f"The {out.name} could not be measured: {reason}."]
        if rows <= width:
            sentences.append(
                f"Only {rows} rows were measured for {width} dimensions, so at most {rows - 1} "
                "directions could show at all: measure more images before trusting these numbers."
            )
        carry = "dimension carries" if collapsed == 1 else "dimensions carry"
        sentences.append(
            f"{collapsed:.0f} of {width} {carry} less than {rtol:g} of the largest singular value."
            if collapsed
            else f"No dimension of the {width} is below {rtol:g} of the largest singular value."
        )
        share = rank / min(width, max(rows - 1, 1))
        sentences.append(
            f"Its effective rank is {rank:.1f}, as if that many dimensions were in use, all alike: "
            f"{100 * share:.0f} % of those available."
        )
        sentences += self._weight_verdict()
        if dropped := int(out.scalars.get("dropped") or 0):
            sentences.append(f"{dropped} rows held NaN or inf and were left out.")
        return sentences

    def _weight_verdict(self) -> list[str]:
        rtol = self.settings["collapse_rtol"]
        shares = {
            w.name: sum(e < rtol**2 for e in w.normalized_eigenvalues)
            / len(w.normalized_eigenvalues)
            for w in self.weights
        }
        worst = max(shares, key=lambda name: shares[name], default=None)
        if worst is None or not shares[worst]:
            return []
        count = sum(share > 0 for share in shares.values())
        have = "weight has" if count == 1 else "weights have"
        return [
            f"{count} of {len(shares)} {have} singular values below {rtol:g} of the largest; most "
            f"in {worst} ({100 * shares[worst]:.0f} %)."
        ]

    def table(self) -> str:
        """The scalars of every layer as lines of text."""
        names = [name for name in GLOSSARY if any(name in r.scalars for r in self.layers)]
        head = ["layer", "dimensions", "rows", *(GLOSSARY[n].title for n in names)]
        lines = [
            [
                layer.name,
                str(layer.dimensions),
                format_value(layer.scalars.get("rows")),
                *(format_value(layer.scalars.get(n)) for n in names),
            ]
            for layer in self.layers
        ]
        # One line a number, one column a layer: names of layers are shorter than those of numbers.
        return _aligned([head, *lines])

    def interval_table(self) -> str:
        """The output's scalars with 95 % interval and correction for few rows as lines of text."""
        out = self.output
        names = [name for name in GLOSSARY if name in out.intervals]
        columns = [
            ["", *(GLOSSARY[n].title for n in names)],
            ["value", *(format_value(out.scalars.get(n)) for n in names)],
            ["95 % interval", *(out.interval(n) for n in names)],
            ["corrected for few rows", *(format_value(out.corrected.get(n)) for n in names)],
        ]
        return _aligned(columns) if names else ""


def _check_contents(report: ModelRecord) -> None:
    """Raise a ValueError at what the fields' types leave open and a reader relies on."""
    if not report.layers:
        raise ValueError("it has no layer")
    if "collapse_rtol" not in report.settings:
        raise ValueError("settings.collapse_rtol is missing")
    for name in report.settings.keys() & _SETTINGS.keys():
        read_value(_SETTINGS[name], report.settings[name], f"settings.{name}")
    for name in report.source.keys() & set(_SOURCE):
        read_value(str, report.source[name], f"source.{name}")
    for i, layer in enumerate(report.layers):
        if any(a < b for a, b in pairwise(layer.spectrum)):
            raise ValueError(f"layers[{i}].spectrum must be in descending order")
        for name, ends in layer.intervals.items():
            if name not in GLOSSARY or len(ends) != 2 or ends[0] > ends[1]:
                raise ValueError(
                    f"layers[{i}].intervals.{name} must be the lower and the upper end of a known "
                    f"number, got {ends}"
                )
    for i, weight in enumerate(report.weights):
        if not weight.normalized_eigenvalues:
            raise ValueError(f"weights[{i}].normalized_eigenvalues must not be empty")


def _aligned(columns: Sequence[Sequence[str]]) -> str:
    """Columns of text side by side, the first to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in columns]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    )


def format_value(value: float | None) -> str:
    """A number as tables show it: about four digits, counts whole, a dash where there is none."""
    if value is None:
        return "–"
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{value:.0f}"
    if abs(value) >= 1e5 or abs(value) < 1e-2:
        return f"{value:.2e}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))) - 1)}f}"


def relative(spectrum: Sequence[float]) -> list[float]:
    """Singular values in descending order, divided by the largest; zeros where that is zero."""
    return [s / spectrum[0] if spectrum[0] > 0 else 0.0 for s in spectrum]


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Values by name rounded to six digits, None for nan and infinity, which JSON does not have."""
    return {n: rounded(v) if math.isfinite(v) else None for n, v in values.items()}


def rounded(value: float) -> float:
    """Six digits: what float32 can tell."""
    return float(f"{value:.6g}")


def finite_json(value: Any) -> Any:
    """Dictionaries, sequences and numbers as JSON takes them: None for nan and infinity."""
    if isinstance(value, Mapping):
        return {name: finite_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
