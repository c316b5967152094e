"""Everything that can be trained: one file per task, all behind the protocol in ``base``."""
