"""Choosing a model without labels, by a rule fitted on trainings with a known accuracy."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from types import MappingProxyType

from rich.console import Console

from lightly_collapse._arguments import InputFile, OutputFolder, validated
from lightly_collapse._combinations import check_select
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.report.glossary import GLOSSARY
from lightly_collapse.report.intervals import told_apart
from lightly_collapse.report.records import LayerRecord, ModelRecord, finite_json

FITTED: Mapping[str, float] = MappingProxyType({"effective_rank": 7.9, "mlid": -7.9})
"""Points of linear accuracy for each unit of a measure's logarithm, here of the ratio of effective
rank to mLID. Fitted on fourteen methods by `tests.benchmarks.collapse_bench select`."""
FITTED_DIMENSIONS = (32, 64)
"""Width of the representations that it was fitted on."""
_COLLAPSED = 0.5
_COLLAPSED_IN_DOUBT = 0.25
_ONE_RUN = (
    "the candidates are checkpoints of one training, among which no measure ranked well on "
    "trainings with known accuracy; there the last was the better choice"
)
_EQUAL_SOURCES = {"model": "architectures", "objective": "objectives"}


@dataclass(frozen=True)
class Candidate:
    """One of the reports to choose from.

    Attributes:
        name: of the report.
        score: expected points of linear accuracy above the mean of the candidates.
        interval: lower and upper end of its 95 % interval, as far as the measures' intervals go:
            how well the score predicts the accuracy is another matter, see `select`. None where one
            of them is unknown.
        doubt: why the interval is unknown or not to be relied on; empty where it can be.
    """

    name: str
    score: float
    interval: tuple[float, float] | None
    doubt: str = ""


@dataclass(frozen=True)
class Selection:
    """What `select` found.

    Attributes:
        chosen: name of the report to keep; None where no answer is given.
        abstained: why not; empty where there is an answer.
        ranking: the candidates that have not collapsed, the best score first; empty where they
            could not be scored.
        excluded: why a report is no candidate, by name.
        notes: what a reader must know.
    """

    chosen: str | None
    abstained: str
    ranking: tuple[Candidate, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def summary(self) -> list[str]:
        """The answer, the ranking and the notes as lines of text."""
        first = f"Keep {self.chosen}." if self.chosen else f"No answer: {self.abstained}."
        lines = [first]
        for i, candidate in enumerate(self.ranking, 1):
            ends = candidate.interval
            known = f" ({ends[0]:+.2f} to {ends[1]:+.2f})" if ends else ""
            lines.append(f"{i}. {candidate.name}: {candidate.score:+.2f}{known}")
        lines += [f"Excluded: {name}, {why}." for name, why in self.excluded.items()]
        return lines + list(self.notes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, atomically.

        Args:
            path: the file.

        Raises:
            OSError: if it cannot be written.
        """
        text = json.dumps(finite_json(asdict(self)), indent=1, allow_nan=False)
        atomic_write(path, text.encode())


def select(
    reports: Sequence[ModelRecord | str | os.PathLike[str]],
    weights: Mapping[str, float] = FITTED,
    one_run: bool | None = None,
) -> Selection:
    """Choose the model whose representation a linear probe would read best, without labels.

    A report whose effective rank, its interval included, is below half the median of the others'
    (a quarter, where the interval is not to be relied on) has collapsed and is no candidate. The
    others are ranked by the ratio of effective rank to mLID: by how many more directions the
    features fill than they have local dimensions. There is no answer among several checkpoints of
    one training, where architectures or objectives differ, where a measure or its interval is
    missing or not to be relied on, and where the scores of the first two differ by less than their
    intervals. How often the answer was right on trainings with known accuracy is in the guide,
    "Choosing a checkpoint".

    Args:
        reports: two or more of `lightly-collapse measure`, of the same images, or paths of them.
        weights: points of accuracy for each unit of a measure's logarithm, by measure.
        one_run: whether two or more are checkpoints of one training; by default if their files are
            in one folder.

    Returns:
        The selection.

    Raises:
        ValueError: if there are fewer than two, one is no report or not one of a model, two have
            one name or path, or they are of different data or settings.
        OSError: if a file cannot be read.

    Examples:
        >>> from dataclasses import replace
        >>> import torch
        >>> from lightly_collapse.report import measure
        >>> x = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
        >>> x[:, 0] *= 3
        >>> thin = x * torch.tensor([1.0] * 3 + [0.001] * 13)
        >>> source = {"model": "conv4", "objective": "SimCLR", "data": "digits"}
        >>> reports = [replace(measure(z, name=n), source=source) for n, z in
        ...            (("broad", x), ("thin", thin))]
        >>> selection = select(reports)
        >>> selection.chosen, list(selection.excluded)
        ('broad', ['thin'])
    """
    check_select(reports)
    loaded = [r if isinstance(r, ModelRecord) else ModelRecord.load(r) for r in reports]
    _check_models(loaded)
    names = _names(reports, loaded)
    _check_same_data(names, loaded)
    for key, what in _EQUAL_SOURCES.items():
        found = sorted({str(r.source.get(key, "unknown")) for r in loaded})
        if len(found) > 1:
            return Selection(None, f"the candidates differ in {what}: {', '.join(found)}")
    widths = sorted({r.output.dimensions for r in loaded})
    if len(widths) > 1:
        shown = ", ".join(map(str, widths))
        return Selection(None, f"the candidates differ in dimensions: {shown}")
    notes = _notes(loaded[0])
    outputs = {name: report.output for name, report in zip(names, loaded, strict=True)}
    excluded = collapsed(outputs)
    left = {name: layer for name, layer in outputs.items() if name not in excluded}
    if not left:
        return Selection(None, "every candidate has collapsed", (), excluded, notes)
    if _of_one_run(loaded) if one_run is None else one_run:
        only = next(iter(left)) if len(left) == 1 else None
        return Selection(only, "" if only else _ONE_RUN, (), excluded, notes)
    for name, layer in left.items():
        missing = [m for m in weights if _feature(layer, m) is None]
        if missing:
            why = layer.problems.get(missing[0], "not positive or not measured")
            reason = f"{GLOSSARY[missing[0]].title} of {name} is not known ({why})"
            return Selection(None, reason, (), excluded, notes)
    ranking = _ranked(left, weights)
    reason = _undecided(ranking)
    chosen = None if reason else ranking[0].name
    return Selection(chosen, reason, ranking, excluded, notes)


def _names(
    given: Sequence[ModelRecord | str | os.PathLike[str]], loaded: Sequence[ModelRecord]
) -> list[str]:
    """Those of the reports; where two have the same, the paths."""
    names = [report.name for report in loaded]
    if len(set(names)) < len(names):
        paths = [r.name if isinstance(r, ModelRecord) else os.fspath(r) for r in given]
        names = [p if names.count(n) > 1 else n for n, p in zip(names, paths, strict=True)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"reports must be of different names or files, got {twice} twice")
    return names


def _check_models(reports: Sequence[ModelRecord]) -> None:
    for report in reports:
        if not report.source.get("model"):
            raise ValueError(
                "reports must each name the model in `source`, as `lightly-collapse measure` of a "
                f"model writes, got {report.name}, a report of embeddings or of a model unnamed"
            )


def _check_same_data(names: Sequence[str], reports: Sequence[ModelRecord]) -> None:
    first = _measured_on(reports[0])
    for name, report in zip(names, reports, strict=True):
        other = _measured_on(report)
        for key in sorted(first | other):
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"reports must be of the same data and settings, got {key} "
                    f"{first.get(key, 'unknown')} in {names[0]} and "
                    f"{other.get(key, 'unknown')} in {name}"
                )


def _measured_on(report: ModelRecord) -> dict[str, object]:
    settings = {k: v for k, v in report.settings.items() if k != "seed"}
    return settings | {"data": report.source.get("data"), "rows": report.output.scalars.get("rows")}


def _of_one_run(reports: Sequence[ModelRecord]) -> bool:
    known = [r.source.get("checkpoint") for r in reports]
    folders = [os.path.dirname(os.path.abspath(str(p))) for p in known if p not in (None, "none")]
    return len(set(folders)) < len(folders)


def _notes(report: ModelRecord) -> tuple[str, ...]:
    notes = ["A score is the linear accuracy expected above the candidates' mean, in points."]
    if "objective" not in report.source:
        notes.append("No report names its objective: it is taken to be the same.")
    low, high = FITTED_DIMENSIONS
    if not low <= report.output.dimensions <= high:
        notes.append(
            f"The rule was fitted on {low} to {high} dimensions, these reports have "
            f"{report.output.dimensions}: it is untried there."
        )
    return tuple(notes)


def collapsed(outputs: Mapping[str, LayerRecord]) -> dict[str, str]:
    """Which have collapsed beside the others.

    Args:
        outputs: of the models, by name.

    Returns:
        Why one says so, by name.
    """
    ranks = {name: layer.scalars.get("effective_rank") or 0.0 for name, layer in outputs.items()}
    found = {}
    for name, layer in outputs.items():
        if not any(layer.spectrum):
            found[name] = "all its rows are equal"
            continue
        ends = layer.intervals.get("effective_rank")
        others = median(rank for other, rank in ranks.items() if other != name)
        rank = f"its effective rank, {ranks[name]:.1f}"
        if ends is None or "effective_rank" in layer.doubtful:
            if ranks[name] < _COLLAPSED_IN_DOUBT * others:
                found[name] = f"{rank}, is below a quarter of the others', {others:.1f}"
        elif ends[1] < _COLLAPSED * others:
            found[name] = f"{rank} (at most {ends[1]:.1f}), is below half the others', {others:.1f}"
    return found


def _feature(layer: LayerRecord, measure: str) -> float | None:
    value = layer.scalars.get(measure)
    return math.log(value) if value is not None and value > 0 else None


def features(layer: LayerRecord, measures: Sequence[str]) -> list[float] | None:
    """The logarithms that the score is linear in.

    Args:
        layer: the model's output.
        measures: their names.

    Returns:
        One for each; None where one is not known.
    """
    found = [_feature(layer, measure) for measure in measures]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def _half_width(layer: LayerRecord, measure: str) -> float | None:
    """That of the 95 % interval of a logarithm; None where it is not known."""
    low, high = layer.intervals.get(measure, (0.0, 0.0))
    return (math.log(high) - math.log(low)) / 2 if low > 0 else None


def _ranked(
    layers: Mapping[str, LayerRecord], weights: Mapping[str, float]
) -> tuple[Candidate, ...]:
    sums = {
        name: sum(
            weight * value
            for weight, value in zip(
                weights.values(), features(layer, list(weights)) or (), strict=True
            )
        )
        for name, layer in layers.items()
    }
    mean = sum(sums.values()) / len(sums)
    found = []
    for name, layer in layers.items():
        score, doubt = sums[name] - mean, ""
        halves = {measure: _half_width(layer, measure) for measure in weights}
        for measure, half in halves.items():
            title = GLOSSARY[measure].title
            if half is None:
                doubt = doubt or f"the report has no 95 % interval of its {title}"
            elif measure in layer.doubtful:
                why = layer.doubtful[measure]
                doubt = doubt or f"the interval of its {title} is not to be relied on: {why}"
        known = [weights[m] * half for m, half in halves.items() if half is not None]
        half = math.hypot(*known)
        ends = (score - half, score + half) if len(known) == len(halves) else None
        found.append(Candidate(name, score, ends, doubt))
    return tuple(sorted(found, key=lambda candidate: -candidate.score))


def _undecided(ranking: Sequence[Candidate]) -> str:
    """Why the first is not better than the next; empty where it is, or is the only one."""
    if len(ranking) == 1:
        return ""
    for candidate in ranking[:2]:
        if candidate.doubt:
            return f"{candidate.name} cannot be placed: {candidate.doubt}"
    first, second = ranking[:2]
    if (
        first.interval is None
        or second.interval is None
        or not told_apart("score", first.interval, second.interval)
    ):
        return f"{first.name} and {second.name} differ by less than their intervals"
    return ""


@validated
def select_command(
    reports: Sequence[InputFile],
    one_run: bool | None = None,
    output: OutputFolder | None = None,
) -> Selection:
    """Choose among trained models without labels, or say why there is no answer.

    Args:
        reports: two or more measure.json, of the same images.
        one_run: whether two or more are checkpoints of one training; by default if their files are
            in one folder.
        output: folder that selection.json is written to; made if missing; none by default.

    Returns:
        The selection.

    Raises:
        ValueError: as `select`.
        OSError: if a file cannot be read or written.
    """
    folder = None if output is None else check_writable_folder(output)
    selection = select(reports, one_run=one_run)
    console = Console(highlight=False, soft_wrap=True)
    for line in selection.summary():
        console.print(line, markup=False)
    if folder is not None:
        selection.save(folder / "selection.json")
        console.print(f"Wrote selection.json to {folder}", markup=False)
    return selection
