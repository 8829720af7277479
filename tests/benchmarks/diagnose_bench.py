"""How often `diagnose` names the true cause, on the runs of the bench.

    python -m tests.benchmarks.diagnose_bench measure --runs OUT --workers N [--part development]
    python -m tests.benchmarks.diagnose_bench score --runs OUT [--part development]

`measure` writes `diagnosis.json` into the folder of every finished run that has none. `score`
concludes again from what was measured, so that thresholds can be changed without measuring again,
and compares with the labels of the bench.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lightly_collapse.pretrain.diagnose import diagnose_run
from lightly_collapse.report.diagnosis import (
    Agreement,
    Diagnosis,
    Evidence,
    Training,
    ViewsEvidence,
    conclude,
)
from lightly_collapse.report.records import LayerRecord, ModelRecord, WeightRecord
from tests.benchmarks.collapse_bench.alarms import share_of
from tests.benchmarks.collapse_bench.outcomes import outcomes, read_runs
from tests.benchmarks.collapse_bench.runs import part_of

NAME = "diagnosis.json"


def measure(folder: str) -> str:
    """Diagnose one run; gives its name and what went wrong, if anything did."""
    torch.set_num_threads(1)
    began = time.process_time()
    try:
        diagnose_run(folder, images=192).save(Path(folder) / NAME)
    except ValueError as error:
        return f"{folder}: {error}"
    return f"{Path(folder).name}: {time.process_time() - began:.1f} s"


def measure_all(options: argparse.Namespace) -> None:
    """Diagnose every finished run that has no diagnosis."""
    todo = [
        str(path.parent)
        for path in sorted(Path(options.runs).glob("*/run.json"))
        if not (path.parent / NAME).exists() and options.part in ("", part_of(path.parent.name))
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(measure, folder) for folder in todo]):
            print(future.result(), flush=True)


def _model(record: Mapping[str, Any]) -> ModelRecord:
    return ModelRecord(
        **{
            **record,
            "layers": [LayerRecord(**layer) for layer in record["layers"]],
            "weights": [
                WeightRecord(**{**w, "shape": tuple(w["shape"])}) for w in record["weights"]
            ],
        }
    )


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.inf if value is None else value for name, value in values.items()}


def evidence_of(path: Path) -> Evidence:
    """What `measure` measured."""
    record = json.loads(path.read_text())["evidence"]
    views = record["views"]
    if views is not None:
        left_out = {name: Agreement(**a) for name, a in views["left_out"].items()}
        pixels, untrained, trained = (
            Agreement(**views[kind]) for kind in ("pixels", "untrained", "trained")
        )
        views = ViewsEvidence(pixels, untrained, trained, left_out)
    training = {n: tuple(v) if isinstance(v, list) else v for n, v in record["training"].items()}
    return Evidence(
        **{
            **record,
            "report": _model(record["report"]),
            "untrained": _model(record["untrained"]),
            "variation": math.nan if record["variation"] is None else record["variation"],
            "norm_ratios": _numbers(record["norm_ratios"]),
            "training": Training(**training),
            "views": views,
            "history": [_numbers(row) for row in record["history"]],
            "problems": tuple(record["problems"]),
        }
    )


def score(options: argparse.Namespace) -> None:
    """Print which cause each run was given, and how often it is the true one."""
    root = Path(options.runs)
    ends = outcomes(read_runs(root)) if options.labels else {}
    right: dict[str, list[bool]] = {"collapsed": [], "healthy": []}
    for path in sorted(root.glob(f"*/{NAME}")):
        run = json.loads((path.parent / "run.json").read_text())
        if options.part not in ("", part_of(run["name"])):
            continue
        evidence = evidence_of(path)
        diagnosis = conclude(evidence, run["name"])
        label = ends[run["name"]].label if ends else ("collapsed" if run["cause"] else "healthy")
        if label == "unclear":
            continue
        collapsed = label == "collapsed"
        given = diagnosis.cause.name if diagnosis.cause else ""
        if collapsed and not run["cause"]:  # collapsed on its own: there is no true cause
            continue
        if run["cause"] and not collapsed:
            verdict = "kept"
        else:
            good = given == run["cause"]
            right["collapsed" if collapsed else "healthy"].append(good)
            verdict = "right" if good else "WRONG"
        print(f"{verdict:5} {run['name']:60} {given or '-':14} {_facts(diagnosis, evidence)}")
    for kind, values in right.items():
        if values:
            print(f"{kind}, right: {share_of(sum(values), len(values))}")


def _facts(diagnosis: Diagnosis, e: Evidence) -> str:
    out, other = e.report.output.scalars, e.untrained.output.scalars
    ratios = sorted(e.norm_ratios.values())
    embedding = next((x for x in e.report.layers if x.name == "embedding"), None)
    return (
        f"{diagnosis.verdict.state:11} rank {out['effective_rank'] or 0:.1f}/"
        f"{other['effective_rank'] or 0:.1f} lost {out['collapsed_dimensions'] or 0:.0f}/"
        f"{e.report.output.dimensions} var {e.variation / e.untrained_variation:.2g} "
        f"norm {ratios[len(ratios) // 2]:.2g} dead {max(e.dead.values(), default=0):.2f} "
        + (f"emb {embedding.scalars['effective_rank'] or 0:.1f} " if embedding else "")
        + (
            f"views {e.views.pixels.matched:.2f} {e.views.untrained.matched:.2f} "
            f"{e.views.trained.matched:.2f} signal {e.views.pixels.signal:.2f} "
            f"{e.views.untrained.signal:.2f} {e.views.trained.signal:.2f}"
            if e.views
            else ""
        )
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("measure", "score"))
    parser.add_argument("--runs", required=True)
    parser.add_argument("--part", default="", choices=("", "development", "unseen"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--labels", action=argparse.BooleanOptionalAction, default=True,
        help="what became of a run says whether it collapsed; else the intention does",
    )  # fmt: skip
    options = parser.parse_args()
    (measure_all if options.verb == "measure" else score)(options)


if __name__ == "__main__":
    main()
