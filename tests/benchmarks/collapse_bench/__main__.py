"""`python -m tests.benchmarks.collapse_bench`; see the package."""

import argparse
import sys
from pathlib import Path

from lightly_collapse.report.select import FITTED
from tests.benchmarks.collapse_bench.alarms import score_alarm
from tests.benchmarks.collapse_bench.correlations import correlations
from tests.benchmarks.collapse_bench.outcomes import outcomes, read_runs
from tests.benchmarks.collapse_bench.pool import run_all
from tests.benchmarks.collapse_bench.selections import choices, fit, groups, left_out, lines

_BENCH = "tests.benchmarks.collapse_bench"


def main() -> None:
    """Parse the command line and run the bench."""
    parser = argparse.ArgumentParser(prog=f"python -m {_BENCH}")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train what is not finished")
    run.add_argument("--output", type=Path, required=True, help="folder of the bench")
    run.add_argument("--cifar10", type=Path, help="folder that holds train and test")
    run.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    run.add_argument("--part", choices=("development", "unseen"))
    run.add_argument("--only", default="", help="runs whose name holds this text")
    evaluate = verbs.add_parser("evaluate", help="what became of the runs, and the alarm on them")
    evaluate.add_argument("--output", type=Path, required=True, help="folder of the bench")
    evaluate.add_argument("--part", choices=("development", "unseen"))
    chosen = verbs.add_parser("select", help="fit the rule of `select`, and how good it chooses")
    chosen.add_argument("--output", type=Path, required=True, help="folder of the bench")
    chosen.add_argument("--part", choices=("development", "unseen"), default="development")
    given = parser.parse_args()
    try:
        if given.verb == "select":
            _select(given.output, given.part)
            return
        if given.verb == "evaluate":
            _evaluate(given.output, given.part)
            return
        run_all(given.output, given.cifar10, given.workers, given.part, given.only)
    except (ValueError, OSError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        sys.exit(2)


def _evaluate(output: Path, part: str | None) -> None:
    records = read_runs(output, part)
    found = outcomes(records)
    for record in records:
        outcome = found[record["name"]]
        print(
            f"{record['name']:52} {record['cause'] or 'healthy':14} {outcome.label:10} "
            f"rank {outcome.rank:.2f} embedding {outcome.embedding:.2f} "
            f"spread {outcome.spread:.2f} linear {100 * outcome.linear:+.1f} "
            f"kNN {100 * outcome.knn:+.1f}"
        )
    score = score_alarm(records, found)
    print(f"alarm: {score}")
    print(f"missed: {', '.join(score.missed) or 'none'}")
    print(f"false: {', '.join(score.false) or 'none'}")
    for name, by_measure in correlations(records).items():
        print(f"Spearman correlation with linear accuracy {name}: mean [95 %], groups")
        for measure, (mean, low, high, count) in by_measure.items():
            print(f"  {measure:22} {mean:+.2f} [{low:+.2f}, {high:+.2f}] {count:.0f}")


def _select(output: Path, part: str) -> None:
    found = groups(output, read_runs(output, part))
    if part == "development":
        weights = fit([group for kind in found.values() for group in kind])
        print("fitted:", ", ".join(f"{name} {value:.2f}" for name, value in weights.items()))
        by_method = left_out(found)
        print("each method by weights fitted on the others:")
    else:
        by_method = {}
        print("by the weights of the library:")
    for line in lines(choices(found, lambda method: by_method.get(method, FITTED))):
        print(line)


if __name__ == "__main__":
    main()
