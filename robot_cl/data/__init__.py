"""Datasets: collect, import, check, store, sample."""
