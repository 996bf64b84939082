"""The smallest config that is its own engine."""
