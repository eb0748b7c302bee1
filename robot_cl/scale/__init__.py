"""Many jobs at once, on this machine or on several: sweeps, skills side by side, collection in shards."""
