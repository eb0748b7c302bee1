"""Robots of our own: models in assets/, maps, regimes of change and missions."""
