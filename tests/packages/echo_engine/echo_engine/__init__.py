"""The smallest engine: it says what its config wants said."""

from importlib import import_module


def main() -> None:
    print(import_module("echo_config").WORDS, flush=True)
