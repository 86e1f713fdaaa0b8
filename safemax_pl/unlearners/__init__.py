"""One file per method; a config names its class by `_target_`, so nothing is registered here."""
