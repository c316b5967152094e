"""A page on this machine to draw with: it runs the commands of ``emu-jax`` and shows what they
draw. Needs the extra ``app``.
"""
