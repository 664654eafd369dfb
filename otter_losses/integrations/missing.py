"""What an adapter derives from where its package is not installed."""

from typing import Any


def absent(package: str, cause: ImportError) -> Any:
    """A class that lets the adapter's module be imported, and says what is missing when it is used."""

    def __init__(self: Any, *arguments: Any, **keywords: Any) -> None:
        raise ImportError(f"{type(self).__name__} needs {package}, which cannot be imported: {cause}") from cause

    return type("Absent", (), {"__init__": __init__})
