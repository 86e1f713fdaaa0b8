"""Run folders: files, identity, loggers, model card; and the scoring of saved runs."""
