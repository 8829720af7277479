"""Hooks that stay with the module that they were put on."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from typing_extensions import override


class Hook:
    """A hook of a module whose copies and pickles are a hook that does nothing.

    An averaged or exported copy of the model is made in the middle of training, when hooks are on:
    its outputs must not be counted, and a function inside another cannot be pickled at all. What is
    pickled needs this package not.

    Args:
        call: what the hook does.

    Examples:
        >>> import copy, torch
        >>> layer, seen = torch.nn.Identity(), []
        >>> handle = layer.register_forward_hook(Hook(lambda m, x, y: seen.append(y)))
        >>> _, _ = layer(1), copy.deepcopy(layer)(2)
        >>> seen
        [1]
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """What `call` returns."""
        return self._call(*arguments)

    @override
    def __reduce__(self) -> Any:
        # The exit of a null context takes any arguments and returns None.
        return getattr, (nullcontext(), "__exit__")
