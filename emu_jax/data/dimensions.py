"""The dimensions in which one image of a synthetic pair is better (:mod:`emu_jax.data.faults`), and
the finishes of things (:mod:`emu_jax.data.finishes`). A module of its own, because configs name
them and import nothing heavy.
"""

DIMENSIONS = ("color", "layout", "lighting", "detail")

# Finish -> what captions call it.
PHRASES = {
    "openmoji": "flat with black outlines",
    "fluent": "shaded like a 3D model",
    "lineless": "flat without outlines",
    "pixels": "as pixel art",
    "pencil": "drawn with a pencil",
    "noto": "flat with soft colors",
}
FINISHES = tuple(PHRASES)
