"""Every speed that is claimed, measured in one run beside its peers. ``make bench``; ``ROUND=short`` for a quick look.

A row that misses its target is marked so. A row that cannot be measured, or that loses or doubles an event, says so in
place of a figure; then the round ends with exit code 1. A peer that is not installed is named, and fails nothing.
"""
