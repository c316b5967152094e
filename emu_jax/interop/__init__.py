"""Public checkpoints in, exported checkpoints out."""
