"""From configs and checkpoints to the parts of a run: for the commands and the Python API."""
