"""Estimators with the manners that the tests need; a server process unpickles them from here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Fixed:
    """Predicts the same outputs whatever comes, from one column."""

    output: Any
    n_features_in_: int = 1

    def predict(self, matrix: NDArray[Any]) -> Any:
        return self.output


class Failing:
    """Is taken for a model, and fails once it is used on anything but zeros."""

    n_features_in_ = 1

    def predict(self, matrix: NDArray[Any]) -> NDArray[Any]:
        if matrix.any():
            raise RuntimeError("secret detail")
        return matrix[:, 0]


class Sleeping:
    """Sleeps as many seconds as its input says, then returns it."""

    n_features_in_ = 1

    def predict(self, matrix: NDArray[Any]) -> NDArray[Any]:
        time.sleep(float(np.sum(matrix)))
        return matrix[:, 0]


class Needy:
    """Cannot be unpickled, since it asks for a module that does not exist."""

    def __reduce__(self) -> Any:
        return __import__, ("no_such_module",)
