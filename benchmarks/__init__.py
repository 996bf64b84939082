"""Numbers beside their limits, measured in one run. ``make bench``, or ``make bench ROUND=short`` for a quick look."""
