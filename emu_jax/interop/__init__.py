"""Public checkpoints in, exported checkpoints out: one file a component of a pipeline."""
