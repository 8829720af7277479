"""All spectrum metrics at once, from one sketch that is updated, gathered and solved once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.metrics._mergeable import MergeableMetric, NanStrategy
from lightly_collapse.metrics.spectrum import (
    AlphaReQ,
    CollapsedDimensions,
    ConditionNumber,
    EffectiveRank,
    NESum,
    ParticipationRatio,
    RankMe,
    Spectrum,
    StableRank,
)


class CollapseMetrics(MetricCollection):
    """A `MetricCollection` whose compute groups are gathered once among processes, not per metric.

    Built by `collapse_metrics`.
    """

    @override
    def compute(self) -> dict[str, Any]:
        """The value of every metric by name."""
        with self._synced():
            return super().compute()

    def compute_or_nan(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """As `compute`, but a metric that cannot be computed is nan instead of an error.

        Returns:
            The values, with `rows` and `dropped` of all processes among them, and the reason for
            every metric that is nan.
        """
        values: dict[str, Tensor] = {}
        reasons: dict[str, str] = {}
        with self._synced():
            leader = self._member(self.compute_groups[0][0])
            nothing = f"no row was measured, {int(leader.dropped)} were dropped"
            for name in self.compute_groups[0]:
                values[name] = torch.tensor(torch.nan)
                if not leader.rows:
                    reasons[name] = nothing
                    continue
                try:
                    values[name] = self._member(name).compute()
                except ValueError as error:
                    reasons[name] = str(error)
            values |= {"rows": leader.rows.clone(), "dropped": leader.dropped.clone()}
        return values, reasons

    def merge_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in the rows of other metrics, whose states are those of each group's first.

        Args:
            states: as `metric_state` of the other metrics; none is changed.

        Raises:
            ValueError: if the widths differ.
        """
        for names in self.compute_groups.values():
            leader = self._member(names[0])
            leader.merge_states(states)
        self._share_states()
        for name in self.keys(keep_base=True):
            self._member(str(name)).mark_updated()

    @contextmanager
    def _synced(self) -> Iterator[None]:
        groups = [[self._member(name) for name in names] for names in self.compute_groups.values()]
        leaders = [group[0] for group in groups]
        waiting = [leader for leader in leaders if leader._computed is None]
        for leader in waiting:
            leader.sync(dist_sync_fn=leader.dist_sync_fn, should_sync=leader.sync_on_compute)
        synced = [leader for leader in leaders if leader._is_synced]
        self._share_states()
        if not synced:
            yield
            return
        members = [m for group in groups if group[0] in synced for m in group]
        for m in members:
            m._to_sync = m._should_unsync = False
        try:
            yield
        finally:
            for m in members:
                m._to_sync, m._should_unsync = m.sync_on_compute, True
            for leader in synced:
                leader.unsync()
            self._share_states()

    def _share_states(self) -> None:
        """Give every metric the states of its group's first, whatever it held before."""
        self._state_is_copy = False
        self._compute_groups_create_state_ref()

    def _member(self, name: str) -> MergeableMetric:
        return getattr(self, name)


def collapse_metrics(
    rtol: float = DEFAULT_RTOL,
    spectrum: bool = False,
    nan_strategy: NanStrategy = "error",
    **kwargs: Any,
) -> CollapseMetrics:
    """Every scalar spectrum metric in one collection that updates one sketch.

    Args:
        rtol: tolerance of `collapsed_dimensions`.
        spectrum: add `spectrum`, the singular values of the centred rows.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf.
        **kwargs: as `torchmetrics.Metric`, such as `process_group`.

    Returns:
        A collection of `rankme`, `effective_rank` (of the centred rows), `stable_rank`,
        `participation_ratio`, `nesum`, `condition_number`, `collapsed_dimensions` and `alpha_req`.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> metrics = collapse_metrics()
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(10):
        ...     metrics.update(torch.randn(100, 16, generator=generator))
        >>> values = metrics.compute()
        >>> f"{values['rankme']:.1f}", int(values["collapsed_dimensions"])
        ('16.0', 0)
    """
    settings: dict[str, Any] = {"nan_strategy": nan_strategy, **kwargs}
    metrics: dict[str, Metric | MetricCollection] = {
        "rankme": RankMe(**settings),
        "effective_rank": EffectiveRank(center=True, **settings),
        "stable_rank": StableRank(**settings),
        "participation_ratio": ParticipationRatio(**settings),
        "nesum": NESum(**settings),
        "condition_number": ConditionNumber(**settings),
        "collapsed_dimensions": CollapsedDimensions(rtol=rtol, **settings),
        "alpha_req": AlphaReQ(**settings),
    }
    if spectrum:
        metrics["spectrum"] = Spectrum(center=True, **settings)
    return CollapseMetrics(metrics, compute_groups=[list(metrics)])
