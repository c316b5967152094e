"""The curation funnel: from a pool of images to the few that a model is quality-tuned on.

    sources -> scoring -> scores (tables, a shard at a time)          Apache Beam
    scores -> duplicates -> pairs of near-duplicates                  Apache Beam
    scores and pairs -> choices -> what is left, and the funnel       seconds, repeated at will
    what is left -> report, data set

Nothing is thrown away while scoring: a filter (:mod:`emu_jax.curation.filters`) computes columns,
and the steps of :mod:`emu_jax.curation.choices` choose by them.
"""
