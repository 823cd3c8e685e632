"""The last lines that a library logged, for the error that says why it stopped."""

import logging
from collections import deque

_NUM_LINES = 15


class LogTail(logging.Handler):
    """Keeps the last lines of a logger, and keeps them out of this process's output.

    Args:
        name: The logger's.
    """

    def __init__(self, name: str):
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=_NUM_LINES)
        self._logger = logging.getLogger(name)
        self._before = (self._logger.level, self._logger.propagate)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(f"{record.levelname} {record.getMessage()}")

    def indented(self) -> str:
        """The lines, each on a line of its own below an error's first."""
        return "".join(f"\n  {line}" for text in self._lines for line in text.splitlines())

    def close(self) -> None:
        """Leave the logger as it was."""
        self._logger.removeHandler(self)
        self._logger.level, self._logger.propagate = self._before
        super().close()
