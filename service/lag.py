"""When what follows the log is too far behind it: `/ready` and `ade doctor` agree on that."""

LAG_EVENTS = 200_000
UNSEALED_S = 60.0
"""Events are sealed within a second; for this long only where the projector is not there, or will not."""
