"""Source strings -> stores that read any row by its number."""

from rayswift.data.sources.find import find
from rayswift.data.sources.named import Source, parse_source
from rayswift.data.sources.opening import open_sources
from rayswift.data.sources.store import RawRow, Store, hold_out

__all__ = ["RawRow", "Source", "Store", "find", "hold_out", "open_sources", "parse_source"]
