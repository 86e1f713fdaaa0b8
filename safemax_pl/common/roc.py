"""Area under the ROC curve."""

import numpy as np
from scipy.stats import rankdata


def area_under_roc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the share of (positive, negative) pairs in which the positive has the larger score; ties count half.

    Args:
        positives, negatives: scores `[M]` and `[N]`, of at least one each. The result is NaN if a score is NaN.
    """
    m, n = len(positives), len(negatives)
    ranks = rankdata(np.concatenate([positives, negatives]))[:m]
    return float((ranks.sum() - m * (m + 1) / 2) / (m * n))
