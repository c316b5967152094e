"""Evaluation of models: metrics, image grids, training curves, reports."""
