"""The networks in a checkpoint: state dicts flattened, prefixes found, one network chosen."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Dictionaries that only contain a state dict; their names are not part of the prefix.
_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "classy_state_dict",
    "base_model",
)
# State of the training that may be as large as the weights, under the same names.
_TRAINING = re.compile(r"optim|sched|scaler|^loops$|^buffers$|^rng|^hyper_parameters$|^loss$")
# Parts of a name that PyTorch's wrappers add, at any depth.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Parts behind the representation, by the names in torchvision, timm, Lightly and papers' code.
_HEADS = {
    *("fc", "classifier", "head", "heads", "head_dist", "linear", "last_linear", "pre_logits"),
    *("AuxLogits", "aux1", "aux2", "aux_head", "pooler"),
    *("projection_head", "prediction_head", "projector", "predictor", "prototypes"),
    *("queue", "queue_ptr", "n_averaged"),
}
_SECOND_WORDS = ("momentum", "teacher", "target", "average", "callbacks")
_SECOND_PARTS = {"ema", "key", "k", "swa", "emamodel"}
_MAX_DEPTH = 12
# Of the names that the best network has; below it, names agree by chance.
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Network:
    """A network found in a state dict.

    Attributes:
        prefix: the part of its names before the model's, such as `backbone.`.
        names: from the name in the state dict to the name in the model, for all names under the
            prefix.
        found: how many of the wanted names it has.
        numbers: the numbers of its children where it is a
            `nn.Sequential(*model.children())`, else empty.
    """

    prefix: str
    names: Mapping[str, str]
    found: int
    numbers: tuple[int, ...] = ()

    @property
    def is_second(self) -> bool:
        """Whether the prefix names a momentum, teacher, target, key or averaged network."""
        lower = self.prefix.lower()
        parts = set(re.split(r"[._]", lower))
        return bool(parts & _SECOND_PARTS) or any(word in lower for word in _SECOND_WORDS)


def flatten(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """All tensors of nested dictionaries by one name each; the optimizer's are left out.

    `{"state_dict": {...}}` and other plain containers add nothing to the names,
    `{"student": {...}, "teacher": {...}}` add theirs. Of weights averaged by Lightning's
    `WeightAveraging` the current ones keep their names and the average comes under `averaged.`.
    Single numbers of callbacks, such as the score of the best checkpoint, are left out too.

    Args:
        content: what was read from a file.

    Returns:
        Tensors by name.

    Examples:
        >>> weight = torch.zeros(2)
        >>> list(flatten({"epoch": 3, "model": {"w": weight}, "ema": {"w": weight}}))
        ['w', 'ema.w']
    """
    if isinstance(content.get("current_model_state"), Mapping):
        content = {
            **{k: v for k, v in content.items() if k not in ("current_model_state", "state_dict")},
            "model": content["current_model_state"],
            "averaged": content.get("state_dict"),
        }
    flat = _flatten(content, 0)
    return {n: t for n, t in flat.items() if t.ndim or not n.startswith("callbacks.")}


def _flatten(content: Mapping[Any, Any], depth: int) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            flat[key] = value
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or depth == _MAX_DEPTH:
            continue
        if depth < 3 and _TRAINING.search(key):
            continue
        inner = _flatten(value, depth + 1)
        if key not in _CONTAINERS or inner.keys() & flat.keys():
            inner = {f"{key}.{name}": tensor for name, tensor in inner.items()}
        flat.update(inner)
    return flat


def is_head(name: str) -> bool:
    """Whether a tensor of a model belongs to a part behind its representation.

    Args:
        name: the tensor's name in the model.

    Returns:
        True for classification and projection heads, prototypes and queues.

    Examples:
        >>> is_head("fc.weight"), is_head("layer4.0.conv1.weight")
        (True, False)
    """
    return name.split(".", maxsplit=1)[0] in _HEADS


def find_networks(
    names: Iterable[str], wanted: Iterable[str], children: Sequence[str] = ()
) -> list[Network]:
    """The networks among the names of a state dict that have the names of a model.

    A name matches under any prefix. Parts that torch.compile, FSDP and activation checkpointing add
    are ignored. `nn.Sequential(*model.children())` numbers the children; the numbers are assigned
    to `children` in order.

    Args:
        names: of the state dict.
        wanted: names in the model's state dict.
        children: the model's children that have tensors, in order.

    Returns:
        The networks that have at least half as many of the wanted names as the best one, best
        first; among equals in the order of the names.

    Examples:
        >>> [n.prefix for n in find_networks(["q.conv.weight", "k.conv.weight"], ["conv.weight"])]
        ['q.', 'k.']
    """
    names = list(names)
    own = {_without_wrappers(name.split(".")): name for name in wanted}
    numbers = _children_numbers(names) if children else {}
    by_number = {
        prefix: dict(zip(map(str, found), children, strict=False))
        for prefix, found in numbers.items()
    }
    counts: Counter[tuple[str, bool]] = Counter()
    for name in names:
        for prefix, parts in _splits(name):
            for is_numbered in (False, True):
                renaming = by_number.get(prefix, {}) if is_numbered else {}
                counts[prefix, is_numbered] += _renamed(parts, renaming) in own
    best = max(counts.values(), default=0)
    networks: list[Network] = []
    for (prefix, is_numbered), found in sorted(counts.items(), key=lambda c: (-c[1], c[0][1])):
        if found < max(1, _LEAST_SHARE * best):
            break
        renaming = by_number.get(prefix, {}) if is_numbered else {}
        inside = {}
        for name in names:
            if name.startswith(prefix):
                short = _renamed(name[len(prefix) :].split("."), renaming)
                inside[name] = own.get(short, short)
        if all(inside != network.names for network in networks):
            networks.append(Network(prefix, inside, found, numbers[prefix] if is_numbered else ()))
    return networks


def choose_network(
    networks: Sequence[Network],
    state: Mapping[str, Tensor],
    prefix: str | None = None,
    what: str = "network that fits",
) -> Network:
    """The network that is meant: the only one, the one asked for, or the online one.

    Args:
        networks: as `find_networks` gives them; at least one.
        state: the state dict.
        prefix: what its names begin with; by default the networks not named as momentum, teacher,
            target, key or averaged (EMA) networks come first, then those with more names.
        what: what is looked for, in messages.

    Returns:
        The network.

    Raises:
        ValueError: if there is none under `prefix`, or two different ones are equally good.

    Examples:
        >>> state = {"teacher.w": torch.zeros(2), "student.w": torch.ones(2)}
        >>> networks = find_networks(state, ["w"])
        >>> choose_network(networks, state).prefix
        'student.'
        >>> choose_network(networks, state, prefix="teacher").prefix
        'teacher.'
    """
    if prefix is not None:
        asked = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        exact = [n for n in networks if n.prefix == asked]
        below = [n for n in networks if asked and n.prefix.startswith(asked)]
        networks_left = exact or below
        if not networks_left:
            raise ValueError(f"prefix: no {what} under {asked!r}; found {_quoted(networks)}")
    else:
        networks_left = [n for n in networks if not n.is_second] or list(networks)
    most = max(n.found for n in networks_left)
    first, *others = (n for n in networks_left if n.found == most)
    if others and not all(_same(first, other, state) for other in others):
        raise ValueError(
            f"checkpoint: {len(others) + 1} times a {what}; choose by prefix: "
            f"{_quoted([first, *others])}"
        )
    return first


def _quoted(networks: Sequence[Network]) -> str:
    return ", ".join(repr(n.prefix) for n in networks[:8]) or "none"


def _same(one: Network, other: Network, state: Mapping[str, Tensor]) -> bool:
    """Whether two networks have equal weights, as one that a module holds under two names."""
    theirs = {inner: name for name, inner in other.names.items()}
    shared = [(name, theirs[inner]) for name, inner in one.names.items() if inner in theirs]
    return len(shared) >= one.found and all(torch.equal(state[a], state[b]) for a, b in shared)


def _splits(name: str) -> Iterable[tuple[str, list[str]]]:
    parts = name.split(".")
    for i in range(len(parts)):
        if parts[i] not in _WRAPPERS:
            yield "".join(f"{part}." for part in parts[:i]), parts[i:]


def _children_numbers(names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """From a prefix to the numbers of the children under it, in ascending order."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        for prefix, parts in _splits(name):
            if len(parts) > 1 and parts[0].isdecimal() and len(parts[0]) < 6:
                numbers[prefix].add(int(parts[0]))
    return {prefix: tuple(sorted(found)) for prefix, found in numbers.items()}


def _renamed(parts: Sequence[str], children: Mapping[str, str]) -> str:
    return _without_wrappers([children.get(parts[0], parts[0]), *parts[1:]])


def _without_wrappers(parts: Sequence[str]) -> str:
    return ".".join(part for part in parts if part not in _WRAPPERS)
