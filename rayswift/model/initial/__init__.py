"""The weights that a run begins with: new blocks, an adapter, and what it needs from the rows."""
