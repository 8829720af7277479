"""What `lightly-collapse export` does."""

from typing import Literal

from lightly_collapse._arguments import Checkpoint, Count, OutputFile, validated
from lightly_collapse._combinations import check_export
from lightly_collapse.export.write import to_detectron2, to_torchvision


@validated
def export(
    checkpoint: Checkpoint,
    output: OutputFile,
    to: Literal["detectron2", "torchvision"] = "detectron2",
    prefix: str | None = None,
    pixel_mean: tuple[float, float, float] | None = None,
    pixel_std: tuple[float, float, float] | None = None,
    heads: Count | None = None,
) -> None:
    """Write a checkpoint's ResNet or ViT for detectron2, with the configuration that fits it.

    Args:
        checkpoint: of Lightning, Lightly or torch.save, or another that `measure` reads.
        output: file to write, .pkl or .pth; for detectron2 with a .yaml beside it.
        to: detectron2 for its names and configuration, torchvision for a plain state dict.
        prefix: of the backbone's names, where there are several ResNets.
        pixel_mean: of pretraining's Normalize, on the 0..1 scale; ImageNet's by default.
        pixel_std: of pretraining's Normalize, on the 0..1 scale; ImageNet's by default.
        heads: of a ViT's attention; one for each 64 channels by default.

    Raises:
        ValueError: if the checkpoint holds no such backbone, or an argument is wrong.
        OSError: if a file cannot be read or written.
    """
    check_export(output, to, pixel_mean=pixel_mean, pixel_std=pixel_std, heads=heads)
    if to == "torchvision":
        written = to_torchvision(checkpoint, output, prefix)
    else:
        written = to_detectron2(
            checkpoint,
            output,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            prefix=prefix,
            heads=heads,
        )
    print(written.summary())
