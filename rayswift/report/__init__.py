"""`report.html`: one self-contained page of a run, rewritten while it goes on. Pure but for `live.py`, no torch."""
