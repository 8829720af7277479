"""How alike the layers of two models are: as data, as a file, in a sentence."""

import json
import os
from dataclasses import asdict, dataclass

from lightly_collapse.io.files import atomic_write

_FORMAT = "lightly-collapse layer similarity 1"


@dataclass(frozen=True)
class LayerSimilarity:
    """Linear CKA of every layer of one model with every layer of another, on the same images.

    Attributes:
        names: of the two models.
        layers_a: of the first, in the order of its forward pass.
        layers_b: of the second.
        cka: a row for each layer of the first, a column for each of the second; None where CKA is
            not defined, as for features without variance.
        images: how many it was computed from.
    """

    names: tuple[str, str]
    layers_a: list[str]
    layers_b: list[str]
    cka: list[list[float | None]]
    images: int

    def value(self, layer_a: str, layer_b: str) -> float | None:
        """CKA of two layers.

        Args:
            layer_a: of the first model.
            layer_b: of the second.

        Raises:
            ValueError: if there is no such layer; the message names those there are.
        """
        for argument, layer, known in (
            ("layer_a", layer_a, self.layers_a),
            ("layer_b", layer_b, self.layers_b),
        ):
            if layer not in known:
                raise ValueError(f"{argument} must be one of {', '.join(known)}, got {layer!r}")
        return self.cka[self.layers_a.index(layer_a)][self.layers_b.index(layer_b)]

    def summary(self) -> str:
        """Which layers of one name are most and least alike, in a sentence."""
        pairs = [(n, self.value(n, n)) for n in self.layers_a if n in self.layers_b]
        known = sorted((value, name) for name, value in pairs if value is not None)
        head = f"Linear CKA of {self.names[0]} and {self.names[1]} on {self.images} images"
        if not known:
            last = self.cka[-1][-1]
            text = "not defined" if last is None else f"{last:.3f}"
            return f"{head}: {text} for {self.layers_a[-1]} and {self.layers_b[-1]}."
        (low, least), (high, most) = known[0], known[-1]
        if len(known) == 1:
            return f"{head}: {low:.3f} for the layer {least}."
        return (
            f"{head}: of the layers of one name most alike {most} ({high:.3f}), least alike "
            f"{least} ({low:.3f})."
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as JSON, atomically.

        Args:
            path: the file.

        Raises:
            OSError: if it cannot be written.
        """
        record = {"format": _FORMAT, **asdict(self)}
        atomic_write(path, json.dumps(record, indent=1, allow_nan=False).encode())
