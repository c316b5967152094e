"""What a training step takes: through the TPU compiler on any machine, or by running it."""
