"""Three real models for the demo, trained on data that scikit-learn ships.

The data are the breast cancer Wisconsin (diagnostic) set: 569 digitized needle biopsies, 30 numeric features of the
cell nuclei in each, and a diagnosis, malignant or benign. Half of them is held out, to send as traffic whose right
answers are known. Version v1 is a logistic regression that looks at texture and symmetry alone; v2 is gradient-boosted
trees over all 30 features; v0 asks a single question about smoothness. All take the same 30 columns, so that one can
stand in for another.

    python hack/demo/models.py OUT

writes OUT/v0/model.joblib, v1/ and v2/ likewise, and OUT/held_out.npz (arrays `rows`, `labels` and `features`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

DATA = "breast cancer Wisconsin (diagnostic), as shipped with scikit-learn"
SEED = 0
FEW = ("mean texture", "mean symmetry")
ONE = "mean smoothness"


@dataclass(frozen=True)
class Rows:
    """Rows with their right answers.

    Attributes:
        rows: one biopsy each, [n, 30] in the units of the data set (lengths in pixels of its images).
        labels: `malignant` or `benign`, [n].
    """

    rows: NDArray[np.float64]
    labels: NDArray[np.str_]


@dataclass(frozen=True)
class Split:
    """The data, cut in half at random but always the same, each half with the same share of either label."""

    features: tuple[str, ...]
    train: Rows
    held_out: Rows


def split() -> Split:
    """Loads the data and cuts them in half."""
    data = load_breast_cancer()
    labels = data.target_names[data.target]
    train, held_out, train_labels, held_out_labels = train_test_split(
        data.data, labels, test_size=0.5, random_state=SEED, stratify=labels
    )
    return Split(tuple(map(str, data.feature_names)), Rows(train, train_labels), Rows(held_out, held_out_labels))


def train(data: Split) -> dict[str, Any]:
    """The models by version, fitted on the training half."""
    few = [data.features.index(name) for name in FEW]
    one = [data.features.index(ONE)]
    models = {
        "v0": make_pipeline(
            ColumnTransformer([("one", "passthrough", one)]), DecisionTreeClassifier(max_depth=1, random_state=SEED)
        ),
        "v1": make_pipeline(ColumnTransformer([("few", StandardScaler(), few)]), LogisticRegression()),
        "v2": GradientBoostingClassifier(random_state=SEED),
    }
    return {version: model.fit(data.train.rows, data.train.labels) for version, model in models.items()}


def accuracy(model: Any, rows: Rows) -> float:
    """The share of rows that a model labels right, from 0 to 1."""
    return float(np.mean(model.predict(rows.rows) == rows.labels))


def save(models: dict[str, Any], data: Split, out: Path) -> None:
    """Writes a directory per version, as a model store holds it, and the held-out rows beside them."""
    for version, model in models.items():
        folder = out / version
        folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(model, folder / "model.joblib")
    np.savez(out / "held_out.npz", rows=data.held_out.rows, labels=data.held_out.labels, features=data.features)


def main(out: Path) -> None:
    """Trains and saves all of them, and says on what and how well they do."""
    data = split()
    models = train(data)
    save(models, data, out)
    print(f"data:     {DATA}")
    train_size, held_out_size = len(data.train.rows), len(data.held_out.rows)
    print(f"rows:     {train_size} to train on, {held_out_size} held out; {len(data.features)} features")
    for version, model in models.items():
        print(f"{version}:       {accuracy(model, data.held_out):.1%} of the held-out rows right")
    print(f"saved to: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python hack/demo/models.py OUT")
    main(Path(sys.argv[1]))
