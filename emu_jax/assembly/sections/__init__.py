"""The sections of a config, typed: the keys of every run, of its data and of its parts."""
