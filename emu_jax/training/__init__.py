"""One trainer for every task: state, step, loop, optimisers, trackers."""
