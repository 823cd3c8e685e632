"""Rounds of completions -> policy updates: advantages and losses, micro-batches, the trainer."""
