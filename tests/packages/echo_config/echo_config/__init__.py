"""Settings for `echo_engine`."""

WORDS = "words of the config"
