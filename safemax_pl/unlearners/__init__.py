"""Unlearning methods, one file each. A config names the class by `_target_`; nothing is registered here."""
