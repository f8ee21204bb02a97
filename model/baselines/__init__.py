"""Recommenders without a trained network, following the events live: what a model has to beat."""
