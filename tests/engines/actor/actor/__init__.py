"""An engine that does what its last argument says, in Python: one build serves the tests of all kinds of behaviour."""
