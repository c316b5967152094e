"""The training step through the TPU compiler on any machine: memory, cost, traffic, profile."""
