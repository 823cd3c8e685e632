"""Garbage collection of actors, which live long and hold many imported objects."""

import gc


def freeze() -> None:
    """Exclude all existing objects from later garbage collections.

    The imports of torch, Ray and vLLM make hundreds of thousands of objects that live to the end. A full collection
    walks through all of them and takes a tenth of a second each time. Not for commands: frozen objects are not cleaned
    up at the exit, and native extensions complain.
    """
    gc.collect()
    gc.freeze()
