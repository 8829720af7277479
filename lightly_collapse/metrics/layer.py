"""Everything that is measured of one layer, from one pass over its features."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightly_collapse import functional
from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.metrics.collection import CollapseMetrics, collapse_metrics
from lightly_collapse.metrics.hypersphere import Uniformity
from lightly_collapse.metrics.intrinsic_dimension import DANCo, LocalIntrinsicDimension, TwoNN


@dataclass(frozen=True)
class Reading:
    """What a `LayerMetrics` measured.

    Attributes:
        scalars: value by name; nan where it could not be computed. `rows` and `dropped` count the
            rows measured and left out, `lid_rows` those sampled for `mlid`, `two_nn` and
            `uniformity`; `lid_k` is the number of neighbours of `mlid`.
        problems: why a value is nan, by name.
        spectrum: singular values of the centred rows, in descending order; none if there is none.
        lid: local intrinsic dimensionality of every sampled row; none if there is none.
    """

    scalars: dict[str, float]
    problems: dict[str, str]
    spectrum: Tensor | None
    lid: Tensor | None


class LayerMetrics:
    """Collapse metrics, intrinsic dimension and uniformity of a stream of rows.

    Rows that hold NaN or inf are left out and counted. Among processes, every one gets the reading
    of all rows.

    Args:
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of the local intrinsic dimensionality; with no more rows than
            that, all the others of a row, with a warning.
        lid_size: number of rows sampled at most for neighbours and pairs.
        seed: of the sample.
        danco: compute the DANCo intrinsic dimension too; it takes minutes for wide features, and
            scikit-dimension.

    Examples:
        >>> import torch
        >>> metrics = LayerMetrics()
        >>> metrics.update(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
        >>> reading = metrics.compute()
        >>> f"{reading.scalars['effective_rank']:.1f}", reading.spectrum.shape
        ('8.0', torch.Size([8]))
    """

    def __init__(
        self,
        rtol: float = DEFAULT_RTOL,
        lid_k: int = DEFAULT_LID_K,
        lid_size: int = 2000,
        seed: int = 0,
        danco: bool = False,
    ) -> None:
        self._lid_k = lid_k
        self._collapse = collapse_metrics(rtol=rtol, spectrum=True, nan_strategy="drop")
        sample: dict[str, Any] = {"size": lid_size, "seed": seed, "nan_strategy": "drop"}
        metrics: dict[str, Metric | MetricCollection] = {
            "lid": LocalIntrinsicDimension(k=lid_k, reduction="none", **sample),
            "two_nn": TwoNN(**sample),
            "uniformity": Uniformity(**sample),
        }
        if danco:
            metrics["danco"] = DANCo(**sample)
        self._sampled = CollapseMetrics(metrics, compute_groups=[[*metrics]])

    def double(self) -> "LayerMetrics":
        """Give values in float64 instead of float32; returns itself."""
        self._collapse.set_dtype(torch.float64)
        self._sampled.set_dtype(torch.float64)
        return self

    def to(self, device: torch.device) -> "LayerMetrics":
        """Move the states to a device; returns itself."""
        self._collapse.to(device)
        self._sampled.to(device)
        return self

    def merge_states(
        self, spectra: Sequence[Mapping[str, Tensor]], samples: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Take in the rows of other metrics: the states of sketches and of samples.

        Raises:
            ValueError: if the widths differ.
        """
        self._collapse.merge_states(spectra)
        self._sampled.merge_states(samples)

    def update(self, rows: Tensor) -> None:
        """Take in (n, D) rows."""
        self.to(rows.device)
        self._collapse.update(rows)
        self._sampled.update(rows)

    def reset(self) -> None:
        """Forget all rows."""
        self._collapse.reset()
        self._sampled.reset()

    def compute(self) -> Reading:
        """The reading of all rows so far."""
        values, problems = self._collapse.compute_or_nan()
        k = self._fewer_neighbors(int(values["rows"]))
        sampled, sampled_problems = self._sampled.compute_or_nan()
        problems |= sampled_problems
        spectrum, lid = values.pop("spectrum").reshape(-1), sampled.pop("lid").reshape(-1)
        has_lid = "lid" not in problems
        scalars = {name: float(value) for name, value in values.items()}
        scalars["mlid"] = float(functional.geometric_mean(lid) if has_lid else lid)
        scalars |= {name: float(value) for name, value in sampled.items()}
        scalars["lid_rows"] = float(lid.numel() if has_lid else 0)
        scalars["lid_k"] = float(k)
        if not has_lid:
            problems["mlid"] = problems.pop("lid")
        return Reading(
            scalars=scalars,
            problems=problems,
            spectrum=None if "spectrum" in problems or not spectrum.any() else spectrum.cpu(),
            lid=lid.cpu() if has_lid else None,
        )

    def _fewer_neighbors(self, rows: int) -> int:
        """The number of neighbours where there are `rows` rows, set for this computation."""
        k = self._lid_k if rows > self._lid_k else max(2, rows - 1)
        if k < self._lid_k and rows > k:
            warnings.warn(
                f"mLID is computed with {k} neighbours instead of {self._lid_k}, since there are "
                f"only {rows} rows",
                stacklevel=3,
            )
        lid: Any = self._sampled["lid"]
        lid.k = k
        return k
