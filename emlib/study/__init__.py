"""From a profile to runs and results."""
