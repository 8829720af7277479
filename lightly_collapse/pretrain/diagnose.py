"""The `diagnose` command: a run or a checkpoint, its images and its views."""

import inspect
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from lightly_collapse._arguments import (
    Arch,
    AtLeastTwo,
    Checkpoint,
    Count,
    Device,
    ImageData,
    ImageSize,
    OutputFolder,
    Seed,
    StepsOrNone,
    validated,
)
from lightly_collapse.io.checkpoints import checkpoint_name
from lightly_collapse.io.devices import find_device
from lightly_collapse.io.files import check_writable_folder
from lightly_collapse.io.image_batches import ImageFolderLoader, digits_loader
from lightly_collapse.io.images import InColour, Preparation, load_images
from lightly_collapse.io.models import load_model
from lightly_collapse.io.preparation import published_preparation
from lightly_collapse.pretrain.command import quiet
from lightly_collapse.pretrain.configs import merge
from lightly_collapse.pretrain.data.sample import sample_views
from lightly_collapse.pretrain.evaluate import data_module
from lightly_collapse.pretrain.methods.base import Method
from lightly_collapse.pretrain.runs import (
    RunFiles,
    build_method,
    find_run,
    load_weights,
    read_readings,
)
from lightly_collapse.pretrain.trial import run_trials
from lightly_collapse.report.diagnosis import Diagnosis, Evidence, Training, conclude
from lightly_collapse.report.diagnosis.diagnose import views_of
from lightly_collapse.report.diagnosis.evidence import (
    Views,
    distinct_images,
    model_evidence,
    untrained_copy,
    views_evidence,
)
from lightly_collapse.report.predict import TransformName, named_transform
from lightly_collapse.theory.augmentations import augmentation_names, without_augmentation

_TRAINING_IMAGES = 5000
_WITHOUT_PROJECTOR = ("DirectCLR",)  # by design


@validated
def diagnose_command(
    run: Checkpoint,
    data: ImageData | None = None,
    transform: TransformName | None = None,
    trial: StepsOrNone = 0,
    arch: Arch | None = None,
    prefix: str | None = None,
    image_size: ImageSize | None = None,
    images: AtLeastTwo = 256,
    limit: Count = 2000,
    seed: Seed = 0,
    device: Device = "auto",
    output: OutputFolder = "collapse-diagnosis",
    console: Console | None = None,
) -> Diagnosis:
    """Say whether a run or checkpoint is collapsed, where, why, and what to change.

    Prints the answers and writes `diagnosis.html` and `diagnosis.json`.

    Args:
        run: output folder of pretrain, or a checkpoint in any common format.
        data: folder of images, or `digits`; the held-out images of config.yaml by default.
        transform: Lightly's of a method for the views: simclr, byol, moco, simsiam, vicreg or dino;
            by default the views of config.yaml.
        trial: train each remedy so many steps from the checkpoint and compare; needs config.yaml.
        arch: a model of torchvision or timm, where the checkpoint does not say what it is.
        prefix: of the network's names in the checkpoint, such as teacher.
        image_size: height and width in pixels; by default that of the run, or as published.
        images: how many images have their views looked at.
        limit: measure at most so many images of a folder.
        seed: of choices of images and of views.
        device: auto, cpu, cuda, cuda:N or mps.
        output: folder to write to; made if missing.
        console: where to print; standard output by default.

    Returns:
        The diagnosis.

    Raises:
        ValueError: if an argument, the checkpoint, config.yaml or collapse.csv is at fault.
        OSError: if a file cannot be read or written.
    """
    files = find_run(run)
    if data is None and files.config is None:
        raise ValueError(
            f"give --data, a folder of images or `digits`: no config.yaml is beside "
            f"{files.checkpoint}"
        )
    if trial and files.config is None:
        raise ValueError(f"trial needs the config.yaml of the run beside {files.checkpoint}")
    folder = check_writable_folder(output)
    console = console or Console()
    choices = _Choices(data, transform, arch, prefix, image_size, limit, seed, find_device(device))
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # Lightning's, of trainers that train nothing
        diagnosis = _DiagnosedRun(files, choices).diagnose(images)
        if trial and diagnosis.remedies:
            assert files.config is not None
            trials = run_trials(files.config, files.checkpoint, diagnosis.remedies, trial, seed)
            diagnosis = diagnosis.with_trials(trials)
    diagnosis.save(folder / "diagnosis.json")
    diagnosis.to_html(folder / "diagnosis.html")
    for line in diagnosis.lines():
        console.print(escape(line), highlight=False)
    console.print(f"Wrote diagnosis.html and diagnosis.json to {folder}", markup=False)
    return diagnosis


@dataclass(frozen=True)
class _Choices:
    """What the command was told."""

    data: str | None
    transform: TransformName | None
    arch: str | None
    prefix: str | None
    image_size: int | None
    limit: int
    seed: int
    device: torch.device


def diagnose_run(run: str | os.PathLike[str], images: int = 256, seed: int = 0) -> Diagnosis:
    """The diagnosis of a run of `pretrain` by its output folder, on the CPU.

    Args:
        run: the folder, with `config.yaml`.
        images: how many images have their views looked at.
        seed: of choices of images and of views.

    Returns:
        The diagnosis.

    Raises:
        ValueError: if the folder lacks a part or one is at fault.
        OSError: if a file cannot be read.
    """
    files = find_run(run)
    if files.config is None:
        raise ValueError(f"run {run} must hold a config.yaml")
    choices = _Choices(None, None, None, None, None, 1, seed, torch.device("cpu"))
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        return _DiagnosedRun(files, choices).diagnose(images)


class _DiagnosedRun:
    """A checkpoint with all that is known of it: model, images, views."""

    def __init__(self, files: RunFiles, choices: _Choices) -> None:
        self.files, self.choices = files, choices
        self.data, self.device, self.seed = choices.data, choices.device, choices.seed
        arch, prefix, image_size = choices.arch, choices.prefix, choices.image_size
        self.history = read_readings(files.readings) if files.readings is not None else []
        self.method: Method | None = None
        self.head: Any = None
        self.notes: list[str] = []
        config = files.config
        self.data_settings: dict[str, Any] = dict(config["data"]) if config else {}
        torch.manual_seed(self.seed)
        if config is not None and arch is None and prefix is None:
            self.method = build_method(config["model"])
            self.untrained: nn.Module = build_method(config["model"]).backbone.eval()
            missing = load_weights(self.method, files.checkpoint)
            if any(name.startswith("backbone.") for name in missing):
                raise ValueError(
                    f"checkpoint {files.checkpoint} does not fit config.yaml: it lacks "
                    f"{next(n for n in missing if n.startswith('backbone.'))}"
                )
            self.model: nn.Module = self.method.backbone.eval()
            if not missing:
                self.head = self.method.eval().embed
            else:
                self.notes.append(
                    "The checkpoint has no projector; what the loss acts on is not measured."
                )
            module = data_module(self.data_settings)
            how = Preparation(
                getattr(module, "image_size", 32), module.normalization, "as in the run"
            )
        else:
            loaded = load_model(arch, files.checkpoint, prefix=prefix)
            self.model, self.notes = loaded.model.eval(), [*loaded.notes]
            self.untrained = untrained_copy(self.model)
            how = published_preparation(loaded, small=self.data == "digits")
        self.how = how if image_size is None else replace(how, image_size=image_size)
        self.model.to(self.device)
        self.untrained.to(self.device)

    def diagnose(self, images: int) -> Diagnosis:
        """Measure everything and conclude."""
        evidence = model_evidence(
            self.model, self._batches(), self.untrained, self.head, seed=self.seed
        )
        evidence = replace(
            evidence,
            training=replace(
                _training(self.method, self.files.config, self.history),
                diverged=self.files.diverged,
            ),
            history=self.history,
        )
        evidence, steps = self._training_images(evidence, images)
        name = checkpoint_name(self.files.checkpoint)
        source = {"run": str(self.files.checkpoint), "data": self.data or "of the run"}
        return conclude(evidence, name, steps, self.notes, source)

    def _batches(self) -> Iterable[Any]:
        if self.data is None:
            module = data_module(self.data_settings)
            module.prepare_data()
            module.setup("validate")
            return module.evaluation_batches()[1]
        size, colours = self.how.image_size, self.how.normalization
        if self.data == "digits":
            return digits_loader(size, limit=self.choices.limit, normalization=colours)
        return ImageFolderLoader(
            self.data, size, limit=self.choices.limit, normalization=colours, seed=self.seed
        )

    def _training_images(
        self, evidence: Evidence, images: int
    ) -> tuple[Evidence, dict[str, dict[str, Any]]]:
        """Duplicates and views, as far as the training images are known."""
        steps: dict[str, dict[str, Any]] = {}
        if self.data is None and self.method is not None:
            module = data_module(self.data_settings)
            module.prepare_data()
            module.setup("fit")
            count, distinct = distinct_images(module.training_images(_TRAINING_IMAGES))
            off = module.random_steps()
            # A data module of one's own may add steps; nothing of them is known but the name.
            added = off.keys() - module.views.random_steps().keys()
            stronger = (*module.views.stronger_steps, *sorted(added))
            evidence = replace(
                evidence,
                images=count,
                distinct=distinct,
                training=replace(evidence.training, stronger_steps=stronger),
            )
            steps = {name: {"data": {"init_args": change}} for name, change in off.items()}
        if self.choices.transform is not None:
            return self._with_transform(evidence, images), steps
        if self.data is not None or self.method is None:
            return evidence, steps
        if self.method.global_views < 2:
            self.notes.append(f"{self.method.name} takes one view: nothing is to agree with.")
            return evidence, steps
        left_out = {name: self._views(images, change) for name, change in off.items()}
        views = views_evidence(
            self._views(images, {}), left_out, self.model, self.untrained, progress=True
        )
        return replace(evidence, views=views), steps

    def _views(self, images: int, change: Mapping[str, Any]) -> Views:
        assert self.method is not None
        global_views = self.method.global_views

        def views(encoders: Any) -> list[Tensor]:
            module = data_module(merge(self.data_settings, {"init_args": dict(change)}))
            module.seed = self.seed
            moved = [lambda x, e=e: e(x.to(self.device)).cpu() for e in encoders]
            return sample_views(module, moved, images, global_views)

        return views

    def _with_transform(self, evidence: Evidence, images: int) -> Evidence:
        if self.data is None:
            raise ValueError("transform makes views of images: give --data too")
        assert self.choices.transform is not None
        dataset = InColour(load_images(self.data))
        made = named_transform(self.choices.transform, self.how.image_size)
        left_out = {
            step: views_of(dataset, without_augmentation(made, step), images, self.seed)
            for step in augmentation_names(made)
        }

        def encoder(model: nn.Module) -> Any:
            return lambda x: model(self.how.normalization(x).to(self.device)).cpu()

        views = views_evidence(
            views_of(dataset, made, images, self.seed),
            left_out,
            encoder(self.model),
            encoder(self.untrained),
            progress=True,
        )
        training = replace(evidence.training, stronger_steps=())
        return replace(evidence, views=views, training=training)


def _training(
    method: Method | None, config: Mapping[str, Any] | None, history: list[dict[str, float]]
) -> Training:
    if method is None or config is None:
        return Training()
    settings = config["model"].get("init_args") or {}
    predictor = getattr(method, "predictor", None)
    inner = [
        m for m in method.trainable_modules() if m is not method.backbone and m is not predictor
    ]
    has_projector = any(p.requires_grad for m in inner for p in m.parameters())
    return Training(
        method=method.name,
        has_projector=True if method.name in _WITHOUT_PROJECTOR else has_projector,
        optimizer=method.optimizer.name,
        learning_rate=method.optimizer.learning_rate,
        weight_decay=method.optimizer.weight_decay,
        disabled=_disabled(type(method), settings),
        steps=int(max((row.get("step", 0.0) for row in history), default=0)) or None,
    )


def _disabled(kind: type[Method], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments of a method that are on by default and that the settings switch off."""
    defaults: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Method) and base is not Method and "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            defaults |= {name: p.default for name, p in parameters.items()}
    return tuple(
        f"{name} {value}"
        for name, value in settings.items()
        if isinstance(defaults.get(name), (bool, float))
        and not isinstance(value, str)
        and not value
        and defaults[name]
    )
