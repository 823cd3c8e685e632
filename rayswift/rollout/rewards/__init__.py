"""Completions -> rewards: built-in and user's functions, reward models; README.md has the contract."""
