"""The `lightly-collapse` command: parses, calls one function, prints.

Every verb has two functions here: one adds its arguments to a parser, the other imports what the
verb needs and runs it. Nothing heavy is imported before a verb runs, so `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lightly_collapse import __version__

_DESCRIPTION = "Prevent, measure, explain and transfer dimensional collapse."


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="baseline, so, srip, ldreg, directclr, no-projector (default: all of them)",
    )
    parser.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("collapse-demo"),
        help="folder for results.json, spectrum.png and report.html (default: %(default)s)",
    )


def _demo(arguments: argparse.Namespace) -> None:
    from lightly_collapse.pretrain.demo.methods import METHODS  # noqa: PLC0415
    from lightly_collapse.pretrain.demo.run import demo  # noqa: PLC0415

    names = [name for word in arguments.methods or METHODS for name in word.split(",") if name]
    demo(names, epochs=arguments.epochs, seed=arguments.seed, output=arguments.output)


def _words(parser: argparse.ArgumentParser) -> None:
    # The verb has its own parser, LightningCLI's: no word is an option here, not even --help.
    parser.prefix_chars = ""
    parser.add_argument("words", nargs=argparse.REMAINDER)


def _pretrain(arguments: argparse.Namespace) -> None:
    from lightly_collapse.pretrain.command import pretrain  # noqa: PLC0415

    pretrain(arguments.words)


def _probe(arguments: argparse.Namespace) -> None:
    from lightly_collapse.pretrain.evaluate import probe  # noqa: PLC0415

    probe(arguments.words)


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="YAML file with methods, regularizers and seeds")
    parser.add_argument(
        "--output", type=Path, default=Path("sweep-output"), help="default: %(default)s"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the file's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="a setting of every run, such as data.root=/images; can be repeated",
    )
    parser.add_argument(
        "--minutes", type=float, help="begin no further run after as many; run again to go on"
    )


def _sweep(arguments: argparse.Namespace) -> None:
    from lightly_collapse.pretrain.sweep import sweep  # noqa: PLC0415

    sweep(
        arguments.file,
        arguments.output,
        arguments.overrides,
        seeds=arguments.seeds,
        minutes=arguments.minutes,
    )


def _measure_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", help="a model of torchvision or timm, such as resnet50")
    parser.add_argument("--data", metavar="DIR", help="folder of images, or `digits`")
    _embeddings_arguments(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="state dict or checkpoint of Lightning or Lightly; random weights without one",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="layers to measure beside the output (default: the model's stages)",
    )
    parser.add_argument(
        "--positions",
        choices=("mean", "all"),
        default="mean",
        help="average feature maps over their positions or take all as rows (default: %(default)s)",
    )
    parser.add_argument(
        "--rtol",
        type=float,
        default=1e-2,
        help="a dimension below this times the largest singular value counts as collapsed "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--lid-k", type=int, default=20, help="neighbours of the LID (default: %(default)s)"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="default: 224, for the digits 32"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that read images (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="measure at most N images")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--name", help="of the model in tables and figures")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("collapse-measure"),
        help="folder for measure.json, measure.html and spectrum.png (default: %(default)s)",
    )


def _embeddings_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("embeddings in files, instead of a model and images")
    group.add_argument(
        "--embeddings",
        metavar="SOURCE",
        help="path, folder, glob or URL of .npy, .npz, .pt, .safetensors, .parquet, .zarr, .lance "
        "or .tar (WebDataset) files",
    )
    group.add_argument("--column", help="of the embeddings, where it is not the only one")
    group.add_argument("--labels-column", help="of classes, for kNN and linear accuracy")
    group.add_argument("--group-by", metavar="COLUMN", help="measure each group by itself too")
    group.add_argument(
        "--neighbors",
        choices=("sample", "all"),
        default="sample",
        help="rows in which mLID's neighbours are sought; `all` takes a second pass "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="default: %(default)s"
    )
    group.add_argument("--address", help="of the Ray cluster")


_OF_EMBEDDINGS = ("column", "labels_column", "group_by", "neighbors", "engine", "address")
_OF_BOTH = ("rtol", "lid_k", "seed", "name", "output")


def _measure(arguments: argparse.Namespace) -> None:
    settings = {n: v for n, v in vars(arguments).items() if n not in ("verb", "run")}
    source = settings.pop("embeddings")
    if source is not None:
        for name in ("arch", "data", "checkpoint", "layers"):
            if settings[name] is not None:
                raise ValueError(f"--{name} must not be given with --embeddings")
        from lightly_collapse.report.embeddings_command import embeddings_command  # noqa: PLC0415

        embeddings_command(source, **{n: settings[n] for n in (*_OF_EMBEDDINGS, *_OF_BOTH)})
        return
    missing = [f"--{n}" for n in ("arch", "data") if settings[n] is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given, or --embeddings")
    for name in _OF_EMBEDDINGS:
        default = {"neighbors": "sample", "engine": "local"}.get(name)
        if settings.pop(name) != default:
            raise ValueError(f"--{name.replace('_', '-')} must only be given with --embeddings")
    from lightly_collapse.report.command import measure_command  # noqa: PLC0415

    measure_command(**settings)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT", help="two or more measure.json"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("collapse-compare"),
        help="folder for compare.html and spectrum.png (default: %(default)s)",
    )


def _compare(arguments: argparse.Namespace) -> None:
    from lightly_collapse.report.command import compare_command  # noqa: PLC0415

    compare_command(arguments.reports, arguments.output)


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="a folder of images, or `digits`")
    parser.add_argument(
        "--transform",
        default="simclr",
        help="Lightly's for simclr, byol, moco, simsiam, vicreg or dino (default: %(default)s)",
    )
    parser.add_argument("--size", type=int, default=32, help="of a view, default: %(default)s")
    parser.add_argument("--images", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--views", type=int, default=8, help="of each, default: %(default)s")
    parser.add_argument(
        "--pool",
        type=int,
        default=8,
        help="features are pixels averaged to POOL x POOL (default: %(default)s)",
    )
    parser.add_argument("--width", type=int, help="of the embedding (default: that of features)")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="in the landscape's units")
    parser.add_argument("--rtol", type=float, default=1e-2, help="default: %(default)s")
    parser.add_argument(
        "--training-steps",
        type=int,
        default=0,
        help="also predict the spectrum after so many SGD steps of InfoNCE",
    )
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="of those, default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("collapse-prediction"),
        help="folder for report.html, spectrum.png and prediction.json (default: %(default)s)",
    )


def _predict(arguments: argparse.Namespace) -> None:
    from lightly_collapse.report.predict import predict  # noqa: PLC0415

    predict(
        arguments.data,
        arguments.transform,
        size=arguments.size,
        output=arguments.output,
        training_steps=arguments.training_steps,
        learning_rate=arguments.learning_rate,
        n_images=arguments.images,
        n_views=arguments.views,
        pool=arguments.pool,
        width=arguments.width,
        weight_decay=arguments.weight_decay,
        rtol=arguments.rtol,
        seed=arguments.seed,
    )


def _toy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiment", help="strong-augmentation, implicit-regularization, landscape or digits"
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="of the first two, default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--noise", type=float, help="of the first two (default: the papers')")
    parser.add_argument("--steps", type=int, help="of SGD (default: the papers')")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("collapse-toy"),
        help="folder for report.html, figure.png and toy.json (default: %(default)s)",
    )


def _toy(arguments: argparse.Namespace) -> None:
    from lightly_collapse.report.toy import toy  # noqa: PLC0415

    toy(
        arguments.experiment,
        runs=arguments.runs,
        seed=arguments.seed,
        noise=arguments.noise,
        steps=arguments.steps,
        output=arguments.output,
    )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="of Lightning, Lightly or torch.save"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="file to write, .pkl or .pth; a .yaml beside it"
    )
    parser.add_argument(
        "--to",
        choices=("detectron2", "torchvision"),
        default="detectron2",
        help="detectron2's names and configuration, or a plain state dict (default: %(default)s)",
    )
    parser.add_argument(
        "--prefix", help="what stands before the backbone's names, where several ResNets are there"
    )
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--pixel-{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{what} of pretraining's Normalize, on the 0..1 scale (default: ImageNet's)",
        )


def _export(arguments: argparse.Namespace) -> None:
    from lightly_collapse.export import to_detectron2, to_torchvision  # noqa: PLC0415

    if arguments.to == "torchvision":
        if arguments.pixel_mean or arguments.pixel_std:
            raise ValueError("--pixel-mean, --pixel-std: a plain state dict has no place for them")
        export = to_torchvision(arguments.checkpoint, arguments.output, arguments.prefix)
    else:
        export = to_detectron2(
            arguments.checkpoint,
            arguments.output,
            pixel_mean=arguments.pixel_mean,
            pixel_std=arguments.pixel_std,
            prefix=arguments.prefix,
        )
    print(export.summary())


_Verb = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]
_VERBS: dict[str, _Verb] = {
    "demo": (
        "train a small encoder on real digits by several methods and show how each collapses",
        _demo_arguments,
        _demo,
    ),
    "pretrain": (
        "pretrain an encoder: method, backbone, regularizers and data from a YAML file or options",
        _words,
        _pretrain,
    ),
    "probe": (
        "train kNN and linear classifiers on the frozen features of a checkpoint",
        _words,
        _probe,
    ),
    "sweep": (
        "pretrain methods x regularizers x seeds, resumable, and compare them on one page",
        _sweep_arguments,
        _sweep,
    ),
    "measure": (
        "measure the collapse of a backbone on images: numbers, figures and a page",
        _measure_arguments,
        _measure,
    ),
    "compare": (
        "overlay what measure found of several backbones",
        _compare_arguments,
        _compare,
    ),
    "predict": (
        "predict from images and augmentations which dimensions will collapse, before training",
        _predict_arguments,
        _predict,
    ),
    "toy": (
        "run the papers' small experiments: how and why a linear network collapses",
        _toy_arguments,
        _toy,
    ),
    "export": (
        "write a checkpoint's ResNet for detectron2, with the configuration that fits it",
        _export_arguments,
        _export,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb of the command line.

    Args:
        argv: the words after the program's name; those of the process by default.

    Returns:
        The exit status: 0, or 2 after a one-line message on standard error where an argument, an
        input or an output is at fault; 130 when interrupted.
    """
    parser = _Parser(prog="lightly-collapse", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for verb, (summary, add_arguments, run) in _VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=summary)
        add_arguments(sub)
        sub.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"lightly-collapse {arguments.verb}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lightly-collapse {arguments.verb}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
