"""Keeps the last log lines of a library, for the error that says why it stopped."""

import logging
from collections import deque

_NUM_LINES = 15


class LogTail(logging.Handler):
    """Keeps the last lines of a logger, and keeps them out of this process's output."""

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
        """Return the lines, indented, to follow the first line of an error."""
        return "".join(f"\n  {line}" for text in self._lines for line in text.splitlines())

    def close(self) -> None:
        """Restore the logger."""
        self._logger.removeHandler(self)
        self._logger.level, self._logger.propagate = self._before
        super().close()
