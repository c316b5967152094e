"""Devices: the mesh, sharding rules by parameter path, several hosts."""
