"""A module of the program's, added to images by name."""


def shout(text: str) -> str:
    return text.upper() + "!"
