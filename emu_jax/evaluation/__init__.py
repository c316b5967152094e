"""Looking at models: picture grids, training curves, reports."""
