"""`report.html`: one self-contained page, updated during the run. Pure except `live.py`; without torch."""
