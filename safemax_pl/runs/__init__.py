"""The folder of a run: its files, its identity, its loggers, its model card."""
