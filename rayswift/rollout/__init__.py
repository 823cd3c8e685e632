"""Prompts -> completions -> rewards -> rounds for the policy trainer; README.md describes the parts."""
