"""Models of hubs: Hugging Face's (`config.json` beside the weights) and `torch.hub`'s."""

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from typing_extensions import override

from lightly_collapse.io.backbones import create_backbone
from lightly_collapse.io.checkpoints import CORRUPT, reason

SCHEME = "hf-hub:"
"""Names that begin so are repositories of the Hub: `hf-hub:timm/resnet18.a1_in1k`."""

TORCH_SCHEME = "torch.hub:"
"""Names that begin so are `torch.hub`'s: `torch.hub:facebookresearch/dino:main/dino_resnet50`."""

_FOLDER = "_folder"  # beside what config.json holds
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
_OLDER_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def fetch(name: str) -> Path:
    """Bring a repository's configuration and weights into the Hub's local cache.

    Args:
        name: `hf-hub:<owner>/<repository>`, with `@<revision>` at its end or not.

    Returns:
        The folder.

    Raises:
        ValueError: if huggingface_hub is missing, or there is no such repository.
        OSError: if the Hub cannot be reached and the repository is not in the cache.
    """
    if find_spec("huggingface_hub") is None:
        raise ValueError(f"checkpoint {name} needs huggingface_hub: pip install huggingface_hub")
    client: Any = import_module("huggingface_hub")

    repository, _, revision = name.removeprefix(SCHEME).partition("@")
    options = {"repo_id": repository, "revision": revision or None}
    try:
        folder = Path(client.snapshot_download(allow_patterns=[*_FILES], **options))
        if not any(folder.glob("*.safetensors")):
            patterns = ["config.json", *_OLDER_FILES]
            folder = Path(client.snapshot_download(allow_patterns=patterns, **options))
    except ValueError as error:
        raise ValueError(f"checkpoint {name}: {reason(error)}") from error
    except Exception as error:
        # The Hub's client raises errors of its HTTP package, whichever that is in its version.
        raise OSError(
            f"checkpoint {name} cannot be fetched ({reason(error)}); without a network, give the "
            "folder of a downloaded copy"
        ) from error
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder; empty where there is none.

    Raises:
        ValueError: if it is damaged.
        OSError: if it cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError(f"a {type(config).__name__}, not an object")
    except (*CORRUPT, RecursionError) as error:
        raise ValueError(
            f"checkpoint {folder}: config.json is damaged ({reason(error)})"
        ) from error
    return config | {_FOLDER: str(folder)}


def create(config: Mapping[str, Any], source: str) -> tuple[str, nn.Module]:
    """The model of timm that a `config.json` describes, with random weights, without classifier.

    Args:
        config: as `read_config` gives it.
        source: where it came from, for messages.

    Returns:
        The model's name and the model.

    Raises:
        ValueError: if it describes no model, or timm is missing.
    """
    if not isinstance(config.get("architecture"), str):
        raise ValueError(
            f"checkpoint {source}: its config.json names neither an architecture of timm nor a "
            "model_type of transformers; give the weight file and arch"
        )
    name = f"timm/{config['architecture']}"
    try:
        return name, create_backbone(name, **config.get("model_args", {}))
    except CORRUPT as error:
        raise ValueError(
            f"checkpoint {source}: the model of its config.json cannot be built ({reason(error)})"
        ) from error


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of transformers."""
    return isinstance(config.get("model_type"), str)


def load_transformers(
    config: Mapping[str, Any], source: str
) -> tuple[str, "TransformersBackbone", list[str], list[str]]:
    """The model in a folder of transformers, with its weights; no code in the folder is run.

    Args:
        config: as `read_config` gives it.
        source: where it came from, for messages.

    Returns:
        The model's name, the model, the names of its tensors that the folder lacks, and the names
        in the folder that it has no place for. A pooler that the folder lacks is removed, and a
        masked autoencoder's encoder sees all patches.

    Raises:
        ValueError: if transformers is missing or does not know the model, or the weights are
            damaged.
    """
    if find_spec("transformers") is None:
        raise ValueError(f"checkpoint {source} needs transformers: pip install transformers")
    transformers: Any = import_module("transformers")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, found = transformers.AutoModel.from_pretrained(
            config[_FOLDER],
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, *CORRUPT) as error:
        raise ValueError(
            f"checkpoint {source}: transformers cannot load it ({reason(error)})"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if getattr(model.config, "mask_ratio", 0):
        model.config.mask_ratio = 0.0  # masked autoencoders drop patches at random, in use too
    missing = sorted(found["missing_keys"])
    if any(name.startswith("pooler.") for name in missing):
        model.pooler = None
        missing = [name for name in missing if not name.startswith("pooler.")]
    name = f"transformers/{config['model_type']}"
    return name, TransformersBackbone(model), missing, sorted(found["unexpected_keys"])


def load_torch_hub(name: str) -> tuple[str, nn.Module]:
    """A model of `torch.hub` with the weights that its repository gives it.

    Unlike every other loader here this runs the repository's code, as `torch.hub.load` does. It
    asks for confirmation where the owner is not trusted yet.

    Args:
        name: `torch.hub:<owner>/<repository>[:<branch>]/<entry point>`.

    Returns:
        The entry point's name and the model.

    Raises:
        ValueError: if the name has another form, the repository is not trusted, or it gives no
            model.
        OSError: if the repository can neither be reached nor found in the cache.
    """
    repository, _, entry = name.removeprefix(TORCH_SCHEME).rpartition("/")
    if repository.count("/") != 1 or not entry:
        raise ValueError(
            f"checkpoint {name}: must be {TORCH_SCHEME}<owner>/<repository>[:<branch>]/<entry>"
        )
    try:
        load: Any = torch.hub.load
        model = load(repository, entry, trust_repo="check", verbose=False)
    except EOFError as error:  # torch.hub asks on standard input
        raise ValueError(
            f"checkpoint {name}: {repository} is not trusted to run its code; call "
            f"torch.hub.load({repository!r}, {entry!r}, trust_repo=True) once"
        ) from error
    except Exception as error:  # whatever the repository's code raises
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"checkpoint {name}: torch.hub cannot load it ({reason(error)})") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"checkpoint {name}: gives a {type(model).__name__}, not a model")
    return entry, model


class TransformersBackbone(nn.Module):
    """A model of transformers that maps images to a tensor instead of an output object.

    The representation is the pooled output where the model has one, else the first token of a
    sequence, or the mean over the positions of a feature map.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Representations (n, d) of images (n, 3, height, width)."""
        output: Any = self.model(pixel_values=images)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state
        return hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
