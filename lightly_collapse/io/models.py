"""Models with the weights of a checkpoint: which one it is, built, loaded and checked."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from lightly_collapse.io import hub
from lightly_collapse.io.backbones import BACKBONES, BackboneSettings, create_backbone
from lightly_collapse.io.checkpoints import CORRUPT, reason
from lightly_collapse.io.networks import Network, choose_network, find_networks, is_head
from lightly_collapse.io.weights import Pretrained, Weights, read_weights

# Of a model's names; several networks with fewer of them agree with it by chance.
_CHANCE = 0.1


@dataclass(frozen=True)
class Match:
    """How a checkpoint met a model.

    Attributes:
        prefix: the part of its names before the model's, such as `backbone.`.
        loaded: number of the model's tensors that were loaded.
        missing: names of the model's tensors that the checkpoint lacks; they keep random values.
        mismatched: names that both have in different shapes; they keep random values as well.
        unused: names of the checkpoint's tensors that found no place.
        others: prefixes of further networks in the checkpoint that fit the model, such as its
            momentum network's.
    """

    prefix: str
    loaded: int
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """The same in sentences, for reports."""
        where = f"under the prefix {self.prefix!r}" if self.prefix else "without a prefix"
        others = f" (also found: {', '.join(map(repr, self.others))})" if self.others else ""
        notes = [f"{self.loaded} tensors of the checkpoint were loaded, found {where}{others}."]
        random = [*self.missing, *(f"{n} (another shape)" for n in self.mismatched)]
        if random:
            notes.append(
                f"{len(random)} tensors of the model are not in the checkpoint and stay random, so "
                f"what depends on them is not that of the trained model: {_some(random, 5)}."
            )
        if self.unused:
            notes.append(
                f"{len(self.unused)} tensors of the checkpoint were not used: "
                f"{_some(self.unused, 5)}."
            )
        return notes


@dataclass(frozen=True)
class LoadedModel:
    """A model and where its weights came from.

    Attributes:
        model: maps images (n, 3, height, width) to representations, in evaluation mode.
        arch: its name, such as `resnet18` or `timm/vit_tiny_patch16_224`.
        match: how the checkpoint met it; None where there was none and the weights are random.
        pretrained: metadata of `lightly-collapse pretrain`, where the checkpoint has it.
        image_size: height and width in pixels where the model takes images of one size only (most
            Vision Transformers); None where it takes any.
        notes: what a report should say about the weights, one sentence an entry.
    """

    model: nn.Module
    arch: str
    match: Match | None = None
    pretrained: Pretrained | None = None
    image_size: int | None = None
    notes: list[str] = field(default_factory=list)


def load_model(
    arch: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    prefix: str | None = None,
    allow_partial: bool = False,
) -> LoadedModel:
    """Build a backbone and load a checkpoint into it.

    A checkpoint of `lightly-collapse pretrain` knows its backbone: name, stem, width, image and
    patch size; a folder in the Hub's form has its `config.json`. `arch` may then be left out. For
    other checkpoints the stem, the width and the image size are read from the tensors' shapes: a
    3x3 `conv1` is a stem for small images (stride 1, no max pooling).

    Args:
        arch: name as for `create_backbone`.
        checkpoint: file, folder or `hf-hub:` name as for `read_weights`, or a name of `torch.hub`,
            `torch.hub:<owner>/<repository>/<entry point>`, which runs the repository's code;
            random weights without one.
        prefix: of the network that is meant, such as `teacher.`; by default the online network,
            before momentum, teacher and averaged (EMA) ones.
        allow_partial: leave tensors random that the checkpoint lacks or has in another shape.

    Returns:
        The model in evaluation mode, and what was loaded.

    Raises:
        ValueError: if neither argument says which model it is, or they disagree; if the checkpoint
            is damaged, does not fit the model, or lacks a part of it (unless `allow_partial`).
        OSError: if the checkpoint cannot be read.

    Examples:
        >>> import tempfile, torch
        >>> small = create_backbone(BackboneSettings("resnet18", stem="cifar", width=16))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": small.state_dict()}, f"{folder}/a.pth")
        ...     loaded = load_model("resnet18", f"{folder}/a.pth")
        >>> loaded.model(torch.rand(1, 3, 32, 32)).shape, loaded.match.loaded
        (torch.Size([1, 128]), 120)
    """
    if checkpoint is None:
        if arch is None:
            raise ValueError("give arch, a checkpoint that says what it is, or both; got neither")
        model = create_backbone(arch).eval()
        note = "No checkpoint was given: the weights are random."
        return LoadedModel(model, arch, image_size=image_size(model), notes=[note])
    if os.fspath(checkpoint).startswith(hub.TORCH_SCHEME):
        return _load_torch_hub(arch, os.fspath(checkpoint))
    weights = read_weights(checkpoint)
    notes: list[str] = []
    if weights.pretrained is not None:
        settings = weights.pretrained.backbone
        _check_agreement(arch, settings.name, weights)
        name, model = settings.name, create_backbone(settings)
    elif hub.is_transformers(weights.config):
        return _load_transformers(arch, weights, prefix, allow_partial)
    elif weights.config:
        name, model = hub.create(weights.config, weights.source)
        _check_agreement(arch, name, weights)
    else:
        name = arch or _known_arch(weights)
        model, notes = _fitted_backbone(name, weights, prefix)
    match = load_weights(model, weights, prefix=prefix, allow_partial=allow_partial)
    return LoadedModel(
        model.eval(),
        name,
        match,
        weights.pretrained,
        image_size(model),
        [*match.notes(), *notes],
    )


def load_checkpoint(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    allow_partial: bool = False,
) -> Match:
    """Load a checkpoint into a model that is already built.

    Args:
        model: takes the weights, in place.
        checkpoint: as for `load_model`.
        prefix: as for `load_model`.
        allow_partial: as for `load_model`. Classification and projection heads of the model may
            always be missing.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: as `load_model`.
        OSError: if it cannot be read.
    """
    return load_weights(model, read_weights(checkpoint), prefix=prefix, allow_partial=allow_partial)


def load_weights(
    model: nn.Module, weights: Weights, *, prefix: str | None = None, allow_partial: bool = False
) -> Match:
    """As `load_checkpoint`, for weights that are already read."""
    own = model.state_dict()
    networks = _networks(model, weights)
    if not networks:
        raise ValueError(
            f"checkpoint {weights.source} does not fit the model: it has "
            f"{_some(list(weights.state))}; the model has {_some(list(own))}; name the "
            "architecture that it was trained with"
        )
    network = choose_network(networks, weights.state, prefix)
    renamed = {inner: weights.state[name] for name, inner in network.names.items()}
    fitting = {n: v for n, v in renamed.items() if n in own and v.shape == own[n].shape}
    missing = [n for n in own if n not in renamed and not n.endswith("num_batches_tracked")]
    mismatched = [n for n in renamed if n in own and n not in fitting]
    if not allow_partial:
        _check_complete(weights, own, renamed, missing, mismatched)
    if not any(v.ndim > 1 for v in fitting.values()):
        raise ValueError(f"checkpoint {weights.source} matches no weight of the model by its shape")
    for name, value in fitting.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"checkpoint {weights.source}: {name} holds NaN or inf")
    try:
        model.load_state_dict(fitting, strict=False)
    except CORRUPT as error:
        raise ValueError(
            f"checkpoint {weights.source}: its tensors cannot be loaded ({reason(error)})"
        ) from error
    return Match(
        prefix=network.prefix,
        loaded=len(fitting),
        missing=missing,
        mismatched=mismatched,
        unused=[n for n in weights.state if network.names.get(n) not in own],
        others=[n.prefix for n in networks if n is not network],
    )


def image_size(model: nn.Module) -> int | None:
    """Height and width of the images that a model takes, where it takes only one size.

    Args:
        model: of torchvision, timm or transformers.

    Returns:
        Pixels; None where any size will do, or it cannot be told.

    Examples:
        >>> image_size(create_backbone(BackboneSettings("vit_tiny", image_size=32, patch_size=8)))
        32
    """
    embedding = getattr(model, "patch_embed", None)
    config = getattr(getattr(model, "model", None), "config", None)
    for owner, name in ((model, "image_size"), (embedding, "img_size"), (config, "image_size")):
        size = getattr(owner, name, None)
        if isinstance(size, (tuple, list)) and size:
            size = size[0]
        if isinstance(size, int):
            return size
    return None


def _load_torch_hub(arch: str | None, name: str) -> LoadedModel:
    if arch is not None:
        raise ValueError(f"checkpoint {name} says which model it is; leave arch out, got {arch!r}")
    entry, model = hub.load_torch_hub(name)
    note = f"The weights are those that {name} gives."
    return LoadedModel(model.eval(), entry, image_size=image_size(model), notes=[note])


def _load_transformers(
    arch: str | None, weights: Weights, prefix: str | None, allow_partial: bool
) -> LoadedModel:
    """Names differ between transformers' versions, so that its own loader reads its folders."""
    if prefix is not None:
        raise ValueError(f"prefix does not apply to checkpoints of transformers, got {prefix!r}")
    name, model, missing, unused = hub.load_transformers(weights.config, weights.source)
    _check_agreement(arch, name, weights)
    own = model.model.state_dict()
    missing = [n for n in missing if n in own]
    if not allow_partial:
        _check_complete(weights, own, {}, missing, [])
    match = Match("", len(own) - len(missing), missing, unused=unused)
    return LoadedModel(model.eval(), name, match, None, image_size(model), match.notes())


def _check_agreement(arch: str | None, name: str, weights: Weights) -> None:
    if arch is not None and arch.removeprefix("timm/") != name.removeprefix("timm/"):
        raise ValueError(
            f"checkpoint {weights.source} is of the architecture {name}, not {arch}; leave arch "
            "out or name the same"
        )


def _known_arch(weights: Weights) -> str:
    if weights.arch is None:
        raise ValueError(
            f"checkpoint {weights.source} does not say which architecture it is of; give arch, "
            "such as resnet50"
        )
    return weights.arch


def _networks(model: nn.Module, weights: Weights) -> list[Network]:
    """The networks of a checkpoint that have a model's names; none where several do by chance."""
    own = model.state_dict()
    networks = find_networks(weights.state, own, _children(model))
    by_chance = len(networks) > 1 and networks[0].found < _CHANCE * len(own)
    return [] if by_chance else networks


def _fitted_backbone(
    name: str, weights: Weights, prefix: str | None
) -> tuple[nn.Module, list[str]]:
    """The model of a name, its stem, width and image size as in the checkpoint's tensors."""
    model = create_backbone(name)
    networks = _networks(model, weights)
    if not networks:
        return model, []
    network = choose_network(networks, weights.state, prefix)
    shapes = {i: tuple(weights.state[n].shape) for n, i in network.names.items()}
    if isinstance(model, ResNet):
        return _fitted_resnet(name, model, shapes)
    return _fitted_vit(name, model, shapes), []


def _fitted_resnet(
    name: str, model: ResNet, shapes: dict[str, tuple[int, ...]]
) -> tuple[nn.Module, list[str]]:
    stem = shapes.get("conv1.weight", ())
    if len(stem) != 4 or tuple(model.conv1.weight.shape) == stem:
        return model, []
    width, channels, *kernel = stem
    if kernel not in ([3, 3], [7, 7]) or channels != 3:
        return model, []
    if width == model.conv1.out_channels:
        model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    else:
        settings = BackboneSettings(name, "cifar" if kernel == [3, 3] else "imagenet", width)
        model = create_backbone(settings)
    notes = []
    if kernel == [3, 3]:
        notes.append(
            "conv1 is 3x3: taken for the stem for small images, with stride 1 and without max "
            "pooling, which the weights do not show."
        )
    return model, notes


def _fitted_vit(name: str, model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """The model for images of the size that the position embedding was made for."""
    size = image_size(model)
    own = {n: tuple(v.shape) for n, v in model.state_dict().items()}
    embedding = next((n for n in ("encoder.pos_embedding", "pos_embed") if n in own), "")
    patches = next((n for n in ("conv_proj.weight", "patch_embed.proj.weight") if n in own), "")
    if size is None or not {embedding, patches} <= shapes.keys():
        return model
    old, new, patch = own[embedding], shapes[embedding], shapes[patches][-1]
    same_patch = patch == own[patches][-1]
    if (old == new and same_patch) or len(new) != 3 or not (same_patch or name in BACKBONES):
        return model
    tokens = new[1] - (old[1] - (size // own[patches][-1]) ** 2)
    grid = math.isqrt(max(tokens, 0))
    if grid == 0 or grid**2 != tokens:
        return model
    if name in BACKBONES:
        return create_backbone(BackboneSettings(name, image_size=grid * patch, patch_size=patch))
    keyword = "image_size" if embedding == "encoder.pos_embedding" else "img_size"
    return create_backbone(name, **{keyword: grid * patch})


def _children(model: nn.Module) -> list[str]:
    """The model's children that have tensors, in order."""
    return [name for name, child in model.named_children() if child.state_dict()]


def _check_complete(
    weights: Weights,
    own: dict[str, Tensor],
    given: dict[str, Tensor],
    missing: Sequence[str],
    mismatched: Sequence[str],
) -> None:
    wrong = [n for n in mismatched if not is_head(n)]
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"checkpoint {weights.source} does not fit the model: {first} is "
            f"{tuple(given[first].shape)}, the model's {tuple(own[first].shape)}"
            + (f", and {len(wrong) - 1} more tensors differ" if wrong[1:] else "")
            + "; name the architecture that it was trained with"
        )
    absent = [n for n in missing if not is_head(n)]
    if absent:
        raise ValueError(
            f"checkpoint {weights.source} lacks {len(absent)} of the model's {len(own)} tensors: "
            f"{_some(absent)}; name the architecture that it was trained with, or allow a partial "
            "match, which leaves them random"
        )


def _some(names: Collection[str], shown: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
