"""Measurements. `README.md` beside this file holds every table and how to repeat it; run scripts with `python -m`."""
