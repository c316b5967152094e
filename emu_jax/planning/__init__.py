"""Time and memory of a training step, from the TPU compiler on any machine or by running it."""
