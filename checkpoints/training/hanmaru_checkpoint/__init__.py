"""Development only: makes the tiny K-EXAONE checkpoint. Left out of the wheel; `make.py` beside it is the entry."""
