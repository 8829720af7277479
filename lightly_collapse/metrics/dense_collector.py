"""Dense measures of the layers of a model, and their drift from a reference model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightly_collapse.metrics.channels import Channels
from lightly_collapse.metrics.dense import TokenMetrics
from lightly_collapse.metrics.feature_hooks import PATCH, find_layers
from lightly_collapse.metrics.features import Tokens
from lightly_collapse.metrics.reference import ReferenceModel, ReferencePass, check_apart


class DenseCollector:
    """Takes the patch tokens that `FeatureHooks` hands on and measures a sample of the images.

    Args:
        model: the model that the layers are in.
        layers: names as in `named_modules()`; hooked before this is made, so that their tokens are
            there when the reference is run.
        reference: a frozen model, or by name of the module that it is the counterpart of.
        tokens: as `lightly_collapse.metrics.FeatureHooks`.
        channels: as `lightly_collapse.metrics.FeatureHooks`.
        prefix: as `lightly_collapse.metrics.FeatureHooks`.
        when: asked at every forward pass whether it counts.
        on_error: called with what failed and the error; by default a ValueError is raised.

    Raises:
        ValueError: if `reference` is of no module that holds a layer, lacks one, or is a part of
            the model.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        reference: nn.Module | Mapping[str, nn.Module] | None = None,
        tokens: Tokens = "auto",
        channels: Channels | None = "auto",
        prefix: int | None = None,
        when: Callable[[], bool] = lambda: True,
        on_error: Callable[[str, Exception], Any] | None = None,
    ) -> None:
        self._metrics: dict[str, TokenMetrics] = {}
        self._choices: list[TokenMetrics] = []
        self._start = 0
        self._on_error = on_error
        self._passes: list[ReferencePass] = []
        self.compared: set[str] = set()
        if reference is None:
            return
        owners = {"": reference} if isinstance(reference, nn.Module) else dict(reference)
        for name, other in owners.items():
            check_apart(model, other)
            owner = find_layers(model, (name,))[name]
            inner = _inside(name, layers)
            names = {k + part: v + part for k, v in inner.items() for part in ("", PATCH)}
            self.compared.update(names)
            self._choices.append(TokenMetrics())
            self._passes.append(
                ReferencePass(
                    owner,
                    ReferenceModel(other, list(inner.values()), tokens, channels, prefix),
                    names.get,
                    self._choices[-1].choose,
                    self._update,
                    when,
                    lambda error: self._fail("the reference", error),
                )
            )

    def begin(self, start: int) -> None:
        """The next image has this number in the stream, of which others measure other parts."""
        self._start = start
        for metrics in (*self._metrics.values(), *self._choices):
            metrics.seen = start

    def take(self, layer: str, tokens: Tensor) -> None:
        """Take in (n, p, c) patch tokens of a layer."""
        try:
            if any(reference.keep(layer, tokens) for reference in self._passes):
                return
            index, weights = self._of(layer).choose(len(tokens))
        except Exception as error:  # what watches a training does not end it, whatever fails
            self._fail(layer, error)
            return
        if len(index):
            self._update(layer, tokens[index.to(tokens.device)], weights, None)

    def _update(
        self, layer: str, tokens: Tensor, weights: Tensor, reference: Tensor | None
    ) -> None:
        try:
            self._of(layer).update(tokens, weights, reference)
        except Exception as error:  # as above: out of memory, say
            self._fail(layer, error)

    def _fail(self, what: str, error: Exception) -> None:
        if self._on_error is None:
            raise ValueError(f"{what} cannot be measured on these images: {error}") from error
        self._on_error(what, error)

    def _of(self, layer: str) -> TokenMetrics:
        return self._metrics.setdefault(layer, TokenMetrics(seen=self._start))

    def totals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """What `TokenMetrics.totals` gives, by layer."""
        return {layer: metrics.totals() for layer, metrics in self._metrics.items()}

    def reset(self) -> None:
        """Forget all images."""
        for metrics in self._metrics.values():
            metrics.reset()

    def remove(self) -> None:
        """Remove the hooks that run references."""
        for reference in self._passes:
            reference.remove()


def _inside(owner: str, layers: Sequence[str]) -> dict[str, str]:
    """From the layers in a module to their names in it."""
    start = f"{owner}." if owner else ""
    inner = {n: n.removeprefix(start) for n in layers if n.startswith(start)}
    inner |= {n: "" for n in layers if n == owner}
    if not inner:
        raise ValueError(
            f"reference must be of a module that holds a layer among {', '.join(layers)}, "
            f"got {owner!r}"
        )
    return inner
