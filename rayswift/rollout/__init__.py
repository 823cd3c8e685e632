"""Prompts -> completions -> rewards -> what the policy trainer trains; README.md says how the parts hang together."""
