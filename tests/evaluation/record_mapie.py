"""Write `mapie_sets.json`: what MAPIE 1.6 makes of drawn probabilities, for `test_conformal.py`.

MAPIE is no dependency: `pip install mapie==1.6.0` in an environment of its own, then run this there.
"""

import json
from pathlib import Path

import numpy as np
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

SEED = 7
FITTED, ASKED, OPTIONS = 57, 24, 4
LEVELS = (0.8, 0.9)


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities are its inputs."""

    classes_ = np.arange(OPTIONS)
    fitted_ = True

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return np.asarray(X)

    def predict(self, X):
        return np.asarray(X).argmax(1)


def main() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (FITTED + ASKED, OPTIONS)).round(3)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = np.array([rng.choice(OPTIONS, p=own) for own in probabilities])
    record = {"logits": logits.tolist(), "true": true[:FITTED].tolist(), "fitted": FITTED, "levels": LEVELS}
    # MAPIE begins anew with its seed at each call.
    record["draws"] = {
        "fitted": np.random.RandomState(SEED).uniform(size=FITTED).tolist(),
        "asked": np.random.RandomState(SEED).uniform(size=ASKED).tolist(),
    }
    for kind in ("lac", "aps"):
        classifier = SplitConformalClassifier(
            Given(), confidence_level=LEVELS, conformity_score=kind, prefit=True, random_state=SEED
        )
        classifier.conformalize(probabilities[:FITTED], true[:FITTED])
        how = {"include_last_label": "randomized"} if kind == "aps" else {}
        _, sets = classifier.predict_set(probabilities[FITTED:], conformity_score_params=how)
        record[kind] = sets.transpose(2, 0, 1).astype(int).tolist()
    path = Path(__file__).with_name("mapie_sets.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
