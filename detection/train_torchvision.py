"""Fine-tune an exported backbone with torchvision's detectors, and measure AP.

The same arguments, configurations, data and result file as detection.train_net, from pip alone:

    python -m detection.train_torchvision --config-file configs/detection/small.yaml \
        --dataset-root bccd_voc MODEL.WEIGHTS r18.pkl OUTPUT_DIR runs/r18

A run is a function of its configuration and SEED alone: interrupted and resumed, it ends with the
same weights. There is one process; for several GPUs there is detection.train_net.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from detection.config import make_parser, parse_arguments, run_command
from detection.results import describe_scores
from detection.torchvision.config import configure
from detection.torchvision.trainer import train


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is that of `run_command`."""
    parser = make_parser("detection.train_torchvision", __doc__.splitlines()[0])
    arguments = parse_arguments(parser, argv)

    def run() -> None:
        config = configure(arguments)
        result = train(config, arguments.resume, arguments.eval_only, arguments.allow_partial)
        print(f"{describe_scores(result)} on {result['dataset']} after {result['seconds']:.0f} s")
        print(f"wrote {Path(config['OUTPUT_DIR']) / 'result.json'}")

    return run_command(parser, run)


if __name__ == "__main__":
    sys.exit(main())
