"""Completions of several turns: the model writes, tools and environments answer."""
