"""Fine-tuning with detectron2: the command is `python -m detection.train_net`."""
