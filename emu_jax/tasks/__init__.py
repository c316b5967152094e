"""Everything that can be trained: one file a task, all behind the protocol of ``base``."""
