"""The demo: one small encoder trained on handwritten digits by six methods."""

from lightly_collapse.pretrain.demo.run import DemoResult, demo

__all__ = ["DemoResult", "demo"]
