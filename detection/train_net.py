"""Fine-tune an exported backbone with detectron2, and measure AP.

detectron2's standard script with its standard arguments, for the configurations in
configs/detection, VOC and any folder in VOC format:

    python -m detection.train_net --num-gpus 8 --config-file configs/detection/voc_R50_C4_24k.yaml \
        MODEL.WEIGHTS r50.pkl OUTPUT_DIR runs/r50
"""

import importlib.util
import sys
from collections.abc import Sequence

import torch

from detection.config import add_arguments, parse_arguments

_MISSING = (
    "detectron2 is not installed: see https://detectron2.readthedocs.io/tutorials/install.html, "
    "or run detection.train_torchvision instead, with the same arguments"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 after one line where an argument or an input is at fault."""
    program = "detection.train_net"
    if importlib.util.find_spec("detectron2") is None:
        print(f"{program}: error: {_MISSING}", file=sys.stderr)
        return 2
    from detectron2.engine import default_argument_parser, launch  # noqa: PLC0415

    from detection.detectron2.trainer import run  # noqa: PLC0415

    parser = default_argument_parser()
    add_arguments(parser)
    parser.set_defaults(num_gpus=min(1, torch.cuda.device_count()))
    arguments = parse_arguments(parser, argv)
    if not 0 <= arguments.num_gpus <= torch.cuda.device_count():
        print(
            f"{program}: error: --num-gpus: {arguments.num_gpus} asked for, "
            f"{torch.cuda.device_count()} found on this machine",
            file=sys.stderr,
        )
        return 2
    try:
        launch(
            run,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    # detectron2 ends a training whose loss is not finite with a FloatingPointError.
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
