"""Groups of the configuration: folders of configs/ whose files are the options of group=option."""

from safemax_pl.common.files import PROJECT

CONFIGS = PROJECT / "configs"


def options(group: str) -> list[str]:
    """Return the sorted names of the options of a group, such as those of "unlearner"."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
