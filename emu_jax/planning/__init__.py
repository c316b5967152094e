"""Time and memory of a training step or a sampler, from the compilers for TPUs and GPUs on any
machine, or by running it.
"""
