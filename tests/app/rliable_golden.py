"""Prints rliable_golden.json; run in an environment with rliable==1.2.0, arch==7.2.0 and pandas<3. Not a test.

python tests/app/rliable_golden.py > tests/app/rliable_golden.json
"""

import json

import numpy as np

THRESHOLDS = [50.0, 70.0, 90.0, 110.0]


def golden() -> dict[str, object]:
    from rliable import library, metrics

    rng = np.random.default_rng(7)
    x = np.round(rng.normal([60, 80, 100], [5, 20, 10], (10, 3)), 3)
    y = np.round(rng.normal([55, 85, 90], [5, 20, 10], (8, 3)), 3)
    profile, _ = library.create_performance_profile({"x": x}, np.array(THRESHOLDS), reps=10)

    def aggregate(scores: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(scores)])

    _, iqm = library.get_interval_estimates({"x": x}, aggregate, reps=50000)
    _, improvement = library.get_interval_estimates({"p": (x, y)}, metrics.probability_of_improvement, reps=5000)
    return {
        "x": x.tolist(),
        "y": y.tolist(),
        "thresholds": THRESHOLDS,
        "iqm": metrics.aggregate_iqm(x),
        "mean": metrics.aggregate_mean(x),
        "improvement": metrics.probability_of_improvement(x, y),
        "profile": profile["x"].tolist(),
        "iqm_interval": iqm["x"].ravel().tolist(),
        "improvement_interval": improvement["p"].ravel().tolist(),
    }


if __name__ == "__main__":
    print(json.dumps(golden()))
