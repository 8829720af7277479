"""What comes in and goes out: files, checkpoints, backbones by name, images."""
