"""Conditions on several arguments of one command; an argument without effect is an error.

The command calls these with its arguments, and the command line before it imports the command.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightly_collapse._names import check_choice, read_names

_TOY_OPTIONS = {
    "strong-augmentation": {"runs", "noise", "steps"},
    "implicit-regularization": {"runs", "noise", "steps", "layers", "relu"},
    "landscape": set[str](),
    "digits": {"steps"},
    "relu-layer": {"steps"},
}


def check_measure(
    arch: str | None = None,
    data: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    prefix: str | None = None,
    workers: int = 0,
    engine: str = "local",
    address: str | None = None,
    device: str = "auto",
    **options: Any,
) -> None:
    """Of `measure` on images.

    Raises:
        ValueError: if they do not say what is measured on what, or one has no effect.
    """
    if arch is None and checkpoint is None:
        raise ValueError("give --arch, --checkpoint or both, to say what is measured")
    if data is None and checkpoint is None:
        raise ValueError("give --data, a folder of images or `digits`")
    if prefix is not None and checkpoint is None:
        raise ValueError(f"prefix has no effect without --checkpoint, got {prefix!r}")
    for name in ("limit", "batch_size", "image_size"):
        if data is None and options.get(name) is not None:
            raise ValueError(
                f"{name} has no effect without --data, on the pretraining's images, "
                f"got {options[name]}"
            )
    _check_reading(data, workers)
    if engine == "ray":
        _check_workers(data, checkpoint, device)
    check_engine(engine, address)


def _check_workers(
    data: str | None, checkpoint: str | os.PathLike[str] | None, device: str
) -> None:
    """Raise unless the workers of a cluster can be given what is measured."""
    if data is None:
        raise ValueError("give --data with --engine ray: the workers read its images themselves")
    if str(checkpoint or "").startswith("torch.hub:"):
        raise ValueError(
            f"checkpoint must be a file or of the Hub with --engine ray, got {checkpoint}, whose "
            "code the workers do not have"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda with --engine ray, got {device!r}")


def _check_reading(data: str | None, workers: int) -> None:
    if workers and data in (None, "digits"):
        what = "the digits" if data else "the pretraining's images"
        raise ValueError(f"workers has no effect on {what}, got {workers}")


def check_engine(engine: str = "local", address: str | None = None, **_: Any) -> None:
    """Of `measure` and `sweep`.

    Raises:
        ValueError: if an argument has no effect, or Ray is wanted and not installed.
    """
    if address is not None and engine != "ray":
        raise ValueError(f"address has no effect without --engine ray, got {address!r}")
    if engine == "ray" and find_spec("ray") is None:
        raise ValueError("engine ray needs Ray: pip install 'lightly-collapse[ray]'")


def check_probe(
    checkpoint: str | os.PathLike[str],
    data: str | None = None,
    config: str | os.PathLike[str] | None = None,
    workers: int = 0,
    protocol: Sequence[str] = ("knn", "linear"),
    dimensions: int | None = None,
    **options: Any,
) -> None:
    """Of `probe`.

    Raises:
        ValueError: if they do not say what it is probed on, or one has no effect.
    """
    if data is not None and config is not None:
        raise ValueError("give --data or --config, not both")
    if data is not None and data != "digits" and not (data and Path(data).is_dir()):
        raise ValueError(f"data must be `digits` or a folder that holds train and val, got {data}")
    beside = Path(checkpoint).parent / "config.yaml"
    if data is None and config is None and not beside.is_file():
        raise ValueError(f"--data or --config must say what to probe on: {beside} does not exist")
    if data == "digits":
        _check_reading(data, workers)
    if options.get("labels") == 0:
        raise ValueError("labels must be a share above 0, got 0")
    if options.get("picture") and options.get("output") is None:
        raise ValueError("picture needs --output, the folder that it is written to")
    trained = {"lars", "sgd"} & set(protocol)
    for name, acts, where in (
        ("epochs", trained, "the protocols lars and sgd"),
        ("crops", trained, "the protocols lars and sgd"),
        ("knn_k", "knn" in protocol, "the protocol knn"),
        ("knn_temperature", "knn" in protocol, "the protocol knn"),
        ("chosen", dimensions, "dimensions"),
    ):
        if options.get(name) is not None and not acts:
            raise ValueError(f"{name} has an effect with {where} only, got {options[name]}")


def check_compare(reports: Sequence[Any], cka: bool = False, **_: Any) -> None:
    """Of `compare`.

    Raises:
        ValueError: if there are fewer than two reports, or not two for `cka`.
    """
    if len(reports) < 2:
        raise ValueError(f"reports must be two or more to compare, got {len(reports)}")
    if cka and len(reports) > 2:
        raise ValueError(f"reports must be two for cka, got {len(reports)}")


def check_select(reports: Sequence[Any], **_: Any) -> None:
    """Of `select`.

    Raises:
        ValueError: if there are fewer than two reports.
    """
    if len(reports) < 2:
        raise ValueError(f"reports must be two or more to choose from, got {len(reports)}")


def check_predict(
    arch: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    pool: int | None = None,
    size: int = 32,
    training_steps: int = 0,
    learning_rate: float | None = None,
    **_: Any,
) -> None:
    """Of `predict`.

    Raises:
        ValueError: if one has no effect.
    """
    if learning_rate is not None and not training_steps:
        raise ValueError("learning_rate has an effect with training_steps only, got 0 of them")
    if pool is not None and (arch is not None or checkpoint is not None):
        raise ValueError("pool is for pixels and has no effect with arch or checkpoint")
    if pool is not None and pool > size:
        raise ValueError(f"pool must be at most size, {size}, got {pool}")


def check_toy(experiment: str, **options: Any) -> None:
    """Of `toy`.

    Raises:
        ValueError: if one has no effect in the experiment.
    """
    for name in ("runs", "noise", "steps", "layers", "relu"):
        if options.get(name) is not None and name not in _TOY_OPTIONS[experiment]:
            raise ValueError(
                f"{name} has no effect in the experiment {experiment}, got {options[name]}"
            )


def check_demo(methods: Sequence[str] = ("baseline",), **_: Any) -> None:
    """Of `demo`.

    Args:
        methods: words of names with commas between them.

    Raises:
        ValueError: if a method is unknown or none is given.
    """
    known = read_names("lightly_collapse.pretrain.demo.methods", "METHODS")
    names = [name for word in methods for name in word.split(",") if name]
    if not names:
        raise ValueError(f"methods must name at least one of {', '.join(known)}")
    for name in names:
        check_choice("methods", name, known)


def check_export(output: str, to: str = "detectron2", **options: Any) -> None:
    """Of `export`.

    Raises:
        ValueError: if the file's name ends otherwise, or an argument has no effect.
    """
    suffixes = (".pkl", ".pth") if to == "detectron2" else (".pth",)
    if Path(output).suffix not in suffixes:
        raise ValueError(f"output must end in {' or '.join(suffixes)}, got {output}")
    given = [n for n in ("pixel_mean", "pixel_std", "heads") if options.get(n) is not None]
    if to == "torchvision" and given:
        raise ValueError(f"{', '.join(given)} has no place in a plain state dict")
    if to == "detectron2" and ("pixel_mean" in given) != ("pixel_std" in given):
        raise ValueError("pixel_mean and pixel_std: give both or none")
