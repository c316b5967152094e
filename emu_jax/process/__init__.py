"""The mathematics of generation: corruption, targets, guidance, samplers. Pure functions."""
