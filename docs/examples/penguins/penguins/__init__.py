"""An engine that tidies the raw penguin observations of Palmer Station.

`tidy` holds the rules, `chart` the picture, `telemetry` the structured lines; `__main__` is the command line that
joins them.
"""
