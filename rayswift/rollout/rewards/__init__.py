"""Completions -> rewards: built-in functions, functions of the user, reward models; README.md has the contract."""
