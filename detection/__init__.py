"""Fine-tuning an exported backbone for detection, with detectron2 or with torchvision.

Run from a checkout: `python -m detection.train_net`, `python -m detection.train_torchvision`,
`python -m detection.compare`. See detection/README.md.
"""
