"""Hydra sweepers whose jobs are run folders: they survive failures and kills, show their progress, end with a table.

`core.py` is what they share; `grid.py` goes through a grid. Another sweeper is a subclass of `core.JobSweeper` in a
module of its own here, with a dataclass in Hydra's ConfigStore beside it, as in `grid.py`.

Hydra imports every `hydra_plugins` module in whichever program uses Hydra, so nothing of ours is imported before a
sweep begins.
"""
