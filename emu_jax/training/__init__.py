"""One trainer for every task: state, step, loop, optimizers, early stopping, trackers."""
