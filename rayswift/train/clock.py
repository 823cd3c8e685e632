"""Measures the parts of the time to the first step."""

import time


class Clock:
    """The seconds since the command began, by part."""

    def __init__(self, began: float):
        self._began = self._lap_began = began
        self._parts: list[tuple[str, float]] = []

    def lap(self, part: str) -> None:
        """End a part of the time."""
        now = time.time()
        self._parts.append((part, now - self._lap_began))
        self._lap_began = now

    def total(self) -> float:
        """Return the seconds since the command began."""
        return time.time() - self._began

    def line(self) -> str:
        """Return a line with all parts and their sum."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._parts)
        return f"first step after {self._lap_began - self._began:.1f} s: {parts}"
