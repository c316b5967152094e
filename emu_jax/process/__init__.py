"""The maths of generation: corruption, targets, guidance, samplers. Pure functions."""
