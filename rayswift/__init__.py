"""RaySwift: a Ray-native trainer for language models."""

__version__ = "0.1.0"
