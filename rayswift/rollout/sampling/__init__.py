"""Prompts -> completions -> rewards -> rows, without a trainer."""
