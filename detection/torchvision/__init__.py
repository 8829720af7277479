"""Fine-tuning with torchvision alone: the command is `python -m detection.train_torchvision`."""
