"""`python -m tests.benchmarks.collapse_bench`; see the package."""

import argparse
import sys
from pathlib import Path

from tests.benchmarks.collapse_bench.pool import run_all

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
    given = parser.parse_args()
    try:
        run_all(given.output, given.cifar10, given.workers, given.part, given.only)
    except (ValueError, OSError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
