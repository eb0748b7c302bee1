"""The doctor's checks, each a function of one dataset that returns a finding or nothing."""
