"""Environments that are written for other projects."""
