"""Fine-tune an exported backbone with detectron2, and measure AP.

detectron2's standard script with its standard arguments, for the configurations in
configs/detection, VOC, COCO and any folder in one of their formats:

    python -m detection.train_net --num-gpus 8 --config-file configs/detection/voc_R50_C4_24k.yaml \
        MODEL.WEIGHTS r50.pkl OUTPUT_DIR runs/r50
"""

import builtins
import importlib.util
import sys
from collections.abc import Callable, Sequence

from torch.multiprocessing import ProcessRaisedException

from detection.checks import check_gpus
from detection.config import make_parser, parse_arguments, run_command
from lightly_collapse.io.locks import HeldError

_MISSING = (
    "detectron2 is not installed: see https://detectron2.readthedocs.io/tutorials/install.html, "
    "or run detection.train_torchvision instead, with the same arguments"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is that of `run_command`."""
    parser = make_parser("detection.train_net", __doc__.splitlines()[0])
    parser.add_argument("--num-machines", type=int, default=1, help="that train together")
    parser.add_argument("--machine-rank", type=int, default=0, help="this machine's, from 0")
    parser.add_argument(
        "--dist-url", default="auto", help="tcp://HOST:PORT of machine 0; needed for several"
    )

    arguments = parse_arguments(parser, argv)

    def run_here() -> None:
        if importlib.util.find_spec("detectron2") is None:
            raise ValueError(_MISSING)
        from detectron2.engine import launch  # noqa: PLC0415

        from detection.detectron2.trainer import run  # noqa: PLC0415

        check_gpus(arguments.num_gpus)
        if arguments.num_machines > 1 and arguments.dist_url == "auto":
            raise ValueError("--dist-url: must be tcp://HOST:PORT for several machines")
        with_plain_errors(
            lambda: launch(
                run,
                arguments.num_gpus,
                num_machines=arguments.num_machines,
                machine_rank=arguments.machine_rank,
                dist_url=arguments.dist_url,
                args=(arguments,),
            )
        )

    return run_command(parser, run_here)


def with_plain_errors(start: Callable[[], None]) -> None:
    """Start processes; an error in one of them is raised here as it was there.

    Args:
        start: returns when the processes have ended.

    Raises:
        ValueError: where one of them ended with an error about arguments, data or files.
        ProcessRaisedException: where one ended otherwise, with its traceback.
    """
    try:
        start()
    except ProcessRaisedException as error:
        # Its text is the traceback, which ends with the type and the message.
        name, _, message = str(error).strip().splitlines()[-1].partition(": ")
        kind = {**vars(builtins), "lightly_collapse.io.locks.HeldError": HeldError}.get(name)
        expected = (ValueError, OSError, FloatingPointError)
        if isinstance(kind, type) and issubclass(kind, expected):
            raise ValueError(message) from error
        raise


if __name__ == "__main__":
    sys.exit(main())
