"""The commands, one thin file each: they put the parts together."""
