"""microgpt: train, sample, measure and understand small GPTs from the command line."""

__version__ = "0.2.0"
