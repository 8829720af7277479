"""What several seeds say about backbones: means, intervals, and whether they differ."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

Estimate = tuple[float | None, float | None]
"""A mean and the half-width of its confidence interval; None where there is none."""


def mean_and_interval(values: Sequence[float | None], level: float = 0.95) -> Estimate:
    """Mean and half-width of Student's confidence interval.

    Args:
        values: one a seed; with a None among them there is no mean.
        level: of confidence.

    Returns:
        The mean, None where a value is missing; the half-width, None for a single value.

    Examples:
        >>> mean, half = mean_and_interval([10.0, 14.0])
        >>> mean, round(half, 2)
        (12.0, 25.41)
        >>> mean_and_interval([10.0])
        (10.0, None)
    """
    if any(value is None for value in values):
        return None, None
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < 2:
        return fmean(numbers), None
    quantile = float(student.ppf((1 + level) / 2, len(numbers) - 1))
    return fmean(numbers), quantile * stdev(numbers) / math.sqrt(len(numbers))


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Estimates over the seeds, a row for each backbone.

    Args:
        results: the content of each run's result.json, and its backbone's `name`.

    Returns:
        Rows with `name`, `seeds`, and an `Estimate` for each score: AP, AP50, AP75, by size where
        the data has objects of more than one size, of masks and of Pascal VOC where there are any,
        and AP50 of each class.
    """
    scores = [_scores(result) for result in results]
    headings = list(dict.fromkeys(key for one in scores for key in one))
    names = [result["name"] for result in results]
    rows = []
    for name in dict.fromkeys(names):
        own = [one for one, of in zip(scores, names, strict=True) if of == name]
        row: dict[str, Any] = {"name": name, "seeds": len(own)}
        row |= {
            heading: mean_and_interval([one.get(heading) for one in own]) for heading in headings
        }
        rows.append(row)
    return rows


def verdicts(results: Sequence[Mapping[str, Any]], score: str = "AP50") -> list[str]:
    """Every two backbones, at the same learning rate, by their differences seed by seed.

    Args:
        results: as for `summarize`; `learning_rate` where several were tried.
        score: that is compared.

    Returns:
        A sentence for each pair that has two or more seeds in common: whether the 95% confidence
        interval of the mean difference leaves out 0.
    """
    by_name: dict[str, dict[int, float]] = {}
    rates = {result["name"]: result.get("learning_rate") for result in results}
    for result in results:
        if result[score] is not None:
            by_name.setdefault(result["name"], {})[result["seed"]] = result[score]
    names = list(by_name)
    sentences = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            seeds = sorted(by_name[first].keys() & by_name[second].keys())
            if len(seeds) < 2 or rates[first] != rates[second]:
                continue
            differences = [by_name[second][seed] - by_name[first][seed] for seed in seeds]
            mean, half = mean_and_interval(differences)
            if mean is None or half is None:
                continue
            interval = f"{score} {mean:+.1f} ± {half:.1f} over {len(seeds)} seeds"
            if abs(mean) <= half:
                sentences.append(f"{second} and {first} cannot be told apart ({interval}).")
            else:
                word = "above" if mean > 0 else "below"
                sentences.append(f"{second} is {word} {first} ({interval}).")
    return sentences


def warnings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the table must know about single runs."""
    lines = []
    for result in results:
        label = f"{result['name']}, seed {result['seed']}"
        loaded, total = result.get("backbone_tensors") or (0, 0)
        if loaded < total:
            lines.append(
                f"{label}: {result['weights']} gave {loaded} of the backbone's {total} tensors; "
                f"the others were random."
            )
        if result["AP"] is None:
            lines.append(f"{label}: the test set has no object that is not difficult, so no AP.")
    return lines


def format_estimate(estimate: Estimate) -> str:
    """As text.

    Examples:
        >>> format_estimate((12.34, 0.567)), format_estimate((30.0, None))
        ('12.3 ± 0.6', '30.0')
    """
    mean, half = estimate
    if mean is None:
        return "none"
    return f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table.

    Examples:
        >>> row = {"name": "so", "seeds": 2, "AP": (12.3, 0.5), "AP50": (3.0, None)}
        >>> print(markdown_table([row]))
        | backbone | seeds | AP | AP50 |
        |---|---:|---:|---:|
        | so | 2 | 12.3 ± 0.5 | 3.0 |
    """
    scores = [key for key in rows[0] if key not in {"name", "seeds"}]
    lines = [
        f"| backbone | seeds | {' | '.join(scores)} |",
        f"|---|---:|{'---:|' * len(scores)}",
    ]
    for row in rows:
        cells = [format_estimate(row[score]) for score in scores]
        lines.append(f"| {row['name']} | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(result: Mapping[str, Any]) -> dict[str, float | None]:
    scores = {name: result.get(name) for name in ("AP", "AP50", "AP75")}
    sizes = {name: result.get(f"AP {name}") for name in ("small", "medium", "large")}
    if len([value for value in sizes.values() if value is not None]) > 1:
        scores |= {f"AP {name}": value for name, value in sizes.items()}
    if masks := result.get("masks"):
        scores |= {f"mask {name}": masks[name] for name in ("AP", "AP50", "AP75")}
    if voc := result.get("pascal_voc"):
        kind = "VOC07" if "11" in voc["metric"] else "VOC12"
        scores |= {f"{kind} {name}": voc[name] for name in ("AP", "AP50", "AP75")}
    scores |= {f"AP50 {name}": value for name, value in result["AP50_by_class"].items()}
    return scores
