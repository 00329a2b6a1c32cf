"""Hydra sweepers whose jobs have run folders: they can be resumed, show their progress and end with a table of runs.

`core.py` is the common base class, `grid.py` a grid sweep and `search.py` an Optuna search. Another sweeper is a
subclass of `core.JobSweeper` in its own module, with a dataclass in Hydra's ConfigStore, as in `grid.py`.

Hydra imports every `hydra_plugins` module in any program that uses Hydra, so microgpt_cli is imported only when a sweep
starts.
"""
