"""The dimensions in which one image of a synthetic pair is better (:mod:`emu_jax.data.faults`). A
module of its own, because configs name them and import nothing heavy.
"""

DIMENSIONS = ("color", "layout", "lighting", "detail")
