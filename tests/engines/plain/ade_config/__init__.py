"""What this config does to a text."""


def change(text: str) -> str:
    return text.upper()
