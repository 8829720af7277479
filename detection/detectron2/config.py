"""detectron2's configuration of a run, read as plain values."""

import argparse
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from detection.config import OUR_DEFAULTS, apply_arguments, fragment_beside, read_values


def default_config() -> Any:
    """detectron2's defaults with our keys."""
    cfg = get_cfg()
    for key, value in OUR_DEFAULTS.items():
        *path, last = key.split(".")
        node = cfg
        for part in path:
            if part not in node:
                node[part] = CfgNode()
            node = node[part]
        node[last] = value
    return cfg


def configure(arguments: argparse.Namespace) -> Any:
    """The configuration that the command line asks for.

    Later ones win: the file's `_BASE_`, the file, the fragment beside MODEL.WEIGHTS, overrides.

    Raises:
        ValueError: if a file is no such configuration, asks for code to be run, or the settings
            cannot be run here.
        OSError: if a file cannot be read.
    """
    cfg = default_config()
    try:
        _merge_file(cfg, arguments.config_file)
        cfg.merge_from_list(arguments.opts)
        if fragment := fragment_beside(cfg.MODEL.WEIGHTS):
            _merge_file(cfg, str(fragment))
            cfg.merge_from_list(arguments.opts)
            print(f"merged {fragment}")
    except (KeyError, AssertionError, yaml.YAMLError) as error:
        raise ValueError(f"config: {error}") from error
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(f"config: INPUT.FORMAT must be 'RGB', got {cfg.INPUT.FORMAT!r}")
    apply_arguments(cfg, arguments)
    return cfg


def _merge_file(cfg: Any, path: str) -> None:
    # Names the file and what is wrong with it, where fvcore's and yacs's errors do not.
    read_values(path)
    content = CfgNode.load_yaml_with_base(path, allow_unsafe=False)
    if content.get("VERSION", 2) != 2:
        raise ValueError(f"config {path}: VERSION must be 2, got {content['VERSION']}")
    cfg.merge_from_other_cfg(CfgNode(content))
