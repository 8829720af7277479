"""detectron2's checkpointer, with files read safely, written atomically, and counted."""

import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from detection.results import RunRecord
from lightly_collapse.export import read_detectron2
from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.io.files import atomic_write

# What pretraining gives: not the pyramid's layers, not the norm that MoCo adds after res5.
_PRETRAINED = re.compile(
    r"(?:backbone\.(?:bottom_up\.)?(?:stem|res\d)|backbone\.net|roi_heads\.res5\.\d+)\."
)
_OF_A_BACKBONE = re.compile(r"(?:.*\.)?(?:stem|res[2-5]\.\d+|blocks\.\d+|patch_embed)\..*")


class Checkpointer(DetectionCheckpointer):  # type: ignore[misc]
    """Reads no code from a file, writes atomically, and refuses weights that fit in part only.

    Args:
        model: the detector.
        save_dir: OUTPUT_DIR.
        record: of the run, which keeps how many tensors were loaded; None checks nothing.
        allow_partial: accept weights that lack some of the backbone's tensors.
        checkpointables: as detectron2's.
    """

    def __init__(
        self,
        model: Any,
        save_dir: str = "",
        *,
        record: RunRecord | None = None,
        allow_partial: bool = False,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._record, self._allow_partial = record, allow_partial
        self._incompatible: Any = None

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a local file, or what detectron2 downloads."""
        if path and "://" not in path and not Path(path).is_file():
            raise ValueError(f"weights {path}: no such file")
        loaded = dict(super().load(path, *args, **kwargs))
        # What the run itself wrote was checked when its weights were first loaded.
        if path and self._record is not None and Path(path).parent != Path(self.save_dir):
            self._check_loaded(path, self._record)
        return loaded

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth and make it the last checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        basename = f"{name}.pth"
        content = {"model": self.model.state_dict(), **states, **kwargs}
        path = Path(self.save_dir) / basename
        atomic_write(path, lambda file: torch.save(content, file))
        self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that `--resume` starts from."""
        atomic_write(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return {"model": read_detectron2(filename), "matching_heuristics": True}
        return dict(super()._load_file(filename))

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: Any) -> Any:
        self._incompatible = super()._load_model(checkpoint)
        return self._incompatible

    def _check_loaded(self, path: str, record: RunRecord) -> None:
        names = [
            name
            for name in self.model.state_dict()
            if _PRETRAINED.match(name) and not name.endswith("num_batches_tracked")
        ]
        wrong = {name for name, *_ in self._incompatible.incorrect_shapes}
        missing = set(self._incompatible.missing_keys) | wrong
        unplaced = [
            name
            for name in self._incompatible.unexpected_keys
            if _OF_A_BACKBONE.fullmatch(name) and not name.endswith("num_batches_tracked")
        ]
        if unplaced and not self._allow_partial:
            raise ValueError(
                f"weights {path}: {len(unplaced)} tensors have no place in the configured network "
                f"({', '.join(sorted(unplaced)[:2])}): another depth than configured?"
            )
        if comm.is_main_process():
            loaded = len([name for name in names if name not in missing])
            record.check_loaded(path, loaded, len(names), self._allow_partial)
