"""Garbage collection of actors, which live long and have imported much."""

import gc


def freeze() -> None:
    """Leave all objects there are out of later collections.

    What torch, Ray and vLLM make when they are imported and built stays to the end, hundreds of thousands of objects. A
    full collection walks through all of them, a tenth of a second each time that enough new objects have come. Not for
    commands: what is frozen is not cleaned up at the exit, and bindings complain.
    """
    gc.collect()
    gc.freeze()
