"""Training: the demo on handwritten digits."""
