"""Devices: the mesh, sharding rules by parameter path, kernels, several processes."""
