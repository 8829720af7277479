"""A strength of the regularizers that needs no sweep: candidates against sweeps of ten weights.

    python -m tests.benchmarks.auto_weight run --output FOLDER --workers N --cifar CIFAR10
    python -m tests.benchmarks.auto_weight table --output FOLDER

`run` trains every setting with every strength and seed, in processes of one thread, and writes one
JSON a run; what is there already is not trained again. CIFAR10 is a folder of
`train/<class>/*.jpg` and `test/<class>/*.jpg`; without it the settings on digits alone are run.
`table` compares: the best weight of a sweep is chosen by the other seeds than the one it is
compared on, so that it has no luck of its own in it; a sweep's own maximum is printed beside it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from lightly.models.utils import get_weight_decay_parameters
from lightly.utils.scheduler import cosine_warmup_schedule
from torch import nn

from lightly_collapse._layers import find_weights
from lightly_collapse.functional import effective_rank
from lightly_collapse.io.files import atomic_write
from lightly_collapse.loss import OrthogonalityRegularizer
from lightly_collapse.pretrain.data.augment import DeviceViews
from lightly_collapse.report.accuracy import knn_accuracy
from tests.benchmarks import auto_strengths as strengths
from tests.benchmarks.auto_settings import FRESH, SETTINGS, SIZE, VIEWS, Images, Setting, load


def train(setting: Setting, images: Images, strength: strengths.Strength, seed: int) -> nn.Module:
    """The trained encoder.

    Raises:
        FloatingPointError: if the loss is no longer finite.
    """
    torch.manual_seed(seed)
    encoder = setting.encoder()
    width = encoder(torch.zeros(2, 3, SIZE, SIZE)).shape[1]
    method = setting.method(encoder, width)
    decayed, undecayed = get_weight_decay_parameters(
        [m for name, m in method.named_children() if name != "target"]
    )
    optimizer = setting.optimizer([{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}])
    views = DeviceViews(VIEWS[setting.data], SIZE)
    peak = optimizer.param_groups[0]["lr"]
    warmup = setting.steps // 10

    def step(number: int) -> float:
        factor = cosine_warmup_schedule(number + 1, setting.steps + 1, 1.0, 0.0, warmup, 0.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * float(factor)
        batch = images.train[torch.randint(len(images.train), (setting.batch,))]
        loss, features = method(*views(batch), number / setting.steps)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} at step {number}")
        optimizer.zero_grad()
        torch.autograd.backward(strength.loss(loss, features))
        strength.before_step()
        optimizer.step()
        strength.after_step(float(factor))
        return float(loss.detach())

    strength.start(strengths.Run(method, encoder, optimizer, step))
    for number in range(setting.steps):
        step(number)
    return encoder.eval()


def run(name: str, strength: str, seed: int, cifar: str | None, path: str) -> None:
    """Train, measure and write one run."""
    torch.set_num_threads(1)
    setting = SETTINGS[name]
    images = load(setting.data, cifar)
    record: dict[str, Any] = {"setting": name, "strength": strength, "seed": seed}
    began = time.process_time()
    made = STRENGTHS[strength]()
    try:
        encoder = train(setting, images, made, seed)
        with torch.no_grad():
            bank, test = (
                torch.cat([encoder(part) for part in x.split(512)])
                for x in (images.train, images.test)
            )
            record["knn"] = knn_accuracy(bank, images.train_labels, test, images.test_labels)
            centred = torch.linalg.svdvals(test - test.mean(dim=0))
            record["effective_rank"] = float(effective_rank(centred))
            residuals = OrthogonalityRegularizer(encoder, weight=1.0).residuals()
            sides = [min(w.tensor().flatten(1).shape) for w in find_weights(encoder)]
            pairs = zip(residuals.values(), sides, strict=True)
            record["residual"] = statistics.fmean(r / side for r, side in pairs)
    except (FloatingPointError, ValueError) as error:
        record["failed"] = str(error)
    record["seconds"] = round(time.process_time() - began, 1)
    record["chosen"] = made.chosen
    atomic_write(path, json.dumps(record).encode())


SWEEPS = {
    "SO": (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "LDReg": (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
}
STRENGTHS: dict[str, Callable[[], strengths.Strength]] = {
    "none": strengths.Strength,
    **{f"SO {w:g}": partial(strengths.Fixed, w) for w in SWEEPS["SO"]},
    "SO ratio by layer 0.1": partial(strengths.GradientRatio, 0.1),
    "SO ratio by layer 0.3": partial(strengths.GradientRatio, 0.3),
    "SO ratio of the whole 0.3": partial(strengths.GradientRatio, 0.3, whole=True),
    "SO residual ratio 1": partial(strengths.ResidualRatio, 1.0),
    "SO residual ratio 3": partial(strengths.ResidualRatio, 3.0),
    "SO decoupled 0.01": partial(strengths.Decoupled, 0.01),
    "SO decoupled 0.1": partial(strengths.Decoupled, 0.1),
    "SO decoupled 0.1, own scale": partial(strengths.Decoupled, 0.1, keep_scale=True),
    "SO update ratio 1": partial(strengths.UpdateRatio, 1.0),
    "SO update ratio 3": partial(strengths.UpdateRatio, 3.0),
    "SO finder": partial(strengths.Finder, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
    **{f"LDReg {w:g}": partial(strengths.LDReg, w) for w in SWEEPS["LDReg"]},
    "LDReg ratio 0.03": partial(strengths.LDRegRatio, 0.03),
    "LDReg ratio 0.1": partial(strengths.LDRegRatio, 0.1),
    "LDReg ratio 0.3": partial(strengths.LDRegRatio, 0.3),
}
CONFIRMED = ("none", "SO decoupled 0.1", *(f"SO {w:g}" for w in (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 1.0)))
"""What is run in the fresh settings: the choice, a sweep of six weights, nothing."""
LDREG_SETTINGS = ("digits SimCLR CNN AdamW", "cifar VICReg CNN LARS")


def runs(seeds: Sequence[int], cifar: str | None, only: str) -> Iterable[tuple[str, str, int]]:
    """Every run there is, seed by seed."""
    for seed in seeds:
        for name, setting in SETTINGS.items():
            for strength in STRENGTHS:
                if strength.startswith("LDReg") and name not in LDREG_SETTINGS:
                    continue
                if name in FRESH and strength not in CONFIRMED:
                    continue
                if (setting.data == "digits" or cifar) and only in f"{name} | {strength}":
                    yield name, strength, seed


def run_all(options: argparse.Namespace) -> None:
    """Train what is not there yet."""
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    todo = []
    for name, strength, seed in runs(options.seeds, options.cifar, options.only):
        path = output / f"{name} - {strength} - {seed}.json".replace(" ", "_")
        if not path.exists():
            todo.append((name, strength, seed, options.cifar, str(path)))
    if options.cifar and todo:
        load("cifar", options.cifar)  # written once, before many processes want it
    end = time.monotonic() + 60 * options.minutes
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *arguments) for arguments in todo]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            print(f"{done}/{len(todo)}", flush=True)
            if time.monotonic() > end:
                pool.shutdown(cancel_futures=True)
                break


Scores = Mapping[str, Mapping[int, float]]  # kNN in percent by strength and seed


def difference(scores: Scores, strength: str) -> tuple[float, float]:
    """Mean lead over the sweep's best weight, and its standard error.

    For every seed the best weight is that of the other seeds.
    """
    kind = strength.split(maxsplit=1)[0]
    sweep = [name for w in SWEEPS[kind] if (name := f"{kind} {w:g}") in scores]
    seeds = sorted(scores[strength])
    leads = []
    for seed in seeds:
        others = [s for s in seeds if s != seed] or [seed]
        best = max(sweep, key=lambda n: statistics.fmean(scores[n].get(s, 0.0) for s in others))
        leads.append(scores[strength][seed] - scores[best].get(seed, 0.0))
    return statistics.fmean(leads), _error(leads)


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def table(options: argparse.Namespace) -> None:
    """Print a table a setting: the sweep, and the candidates against it."""
    records = [json.loads(file.read_text()) for file in Path(options.output).glob("*.json")]
    for name in SETTINGS:
        own = [r for r in records if r["setting"] == name]
        scores: dict[str, dict[int, float]] = {}
        for r in own:
            scores.setdefault(r["strength"], {})[r["seed"]] = 100 * r.get("knn", 0.0)
        if "none" not in scores:
            continue
        print(f"\n### {name}\n")
        print(
            "| strength | seeds | kNN % | against none | against the sweep | eff. rank | residual |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for strength in (s for s in STRENGTHS if s in scores):
            mine = [r for r in own if r["strength"] == strength]
            gains = [
                scores[strength][r["seed"]] - scores["none"][r["seed"]]
                for r in mine
                if r["seed"] in scores["none"]
            ]
            lead = ""
            if strength != "none":
                lead = "{:+.1f} ± {:.1f}".format(*difference(scores, strength))
            cells = [
                strength,
                f"{len(mine)}",
                f"{statistics.fmean(scores[strength].values()):.1f}",
                f"{statistics.fmean(gains):+.1f} ± {_error(gains):.1f}",
                lead,
                *(
                    f"{statistics.fmean(r[key] for r in mine if key in r):.3g}"
                    if any(key in r for r in mine)
                    else "failed"
                    for key in ("effective_rank", "residual")
                ),
            ]
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("--output", required=True)
    parser.add_argument("--cifar")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="runs with this in `setting | strength`")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start none after")
    options = parser.parse_args()
    (run_all if options.verb == "run" else table)(options)


if __name__ == "__main__":
    main()
