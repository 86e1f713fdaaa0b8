"""All pictures of attacks: headline numbers as bars, scores along every attack, and images."""

from pathlib import Path

from safemax_pl.reports.figures.attack_bars import bars
from safemax_pl.reports.figures.attack_curves import curves
from safemax_pl.reports.figures.attack_images import images
from safemax_pl.reports.figures.picture import Picture
from safemax_pl.reports.robustness import Robustness


def draw(folder: Path, robustness: Robustness) -> dict[str, list[Picture]]:
    """Draw everything; return heading -> pictures."""
    attacks, rows = robustness.attacks, robustness.rows
    pictures = {
        "Headline numbers": [bars(folder, attacks, rows)],
        "Curves of the attacks": [curves(folder, one, rows) for one in attacks],
        "Images at the strongest point": [
            picture for one in attacks if (picture := images(folder, one, rows)) is not None
        ],
    }
    return {heading: found for heading, found in pictures.items() if found}
