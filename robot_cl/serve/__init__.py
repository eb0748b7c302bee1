"""Runs, skills and reports of a folder in a browser: read-only, on this machine's own address."""
