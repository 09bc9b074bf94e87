"""Means over all ranks' samples, put together from the ranks' sums and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import chainer
import numpy as np
from chainer.backends import cuda

from mnx.arrays import is_array
from mnx.errors import DtypeError, MismatchError


class WeightedSums:
    """The weighted sum of each reported value, and the sum of its weights.

    Sums are float64 and stay on their device, so that adding does not wait for a GPU.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}

    def add_scalars(self, observation: Mapping[str, Any], weight: int) -> None:
        """Add one batch's observation; what is not a scalar is left out, as Chainer does.

        Parameters
        ----------
        observation : dict
            Scalars, or pairs of a scalar and its own weight.
        weight : int
            Number of samples in the batch.
        """
        for key, value in observation.items():
            own_weight: Any = weight
            if isinstance(value, tuple):
                value, own_weight = value
            value, own_weight = _array(value), _array(own_weight)
            if np.isscalar(value) or (is_array(value) and value.ndim == 0):
                self._add(key, value, own_weight)

    def add_means(self, means: Mapping[str, Any], weight: int) -> None:
        """Add means over `weight` samples: scalars or arrays of numbers."""
        for key, value in means.items():
            array = np.asarray(_on_cpu(_array(value)))
            if array.dtype.kind not in 'biuf':
                raise DtypeError(
                    f'create_multi_node_evaluator: cannot average {key!r}, expected a number or '
                    f'an array of numbers but got {type(value).__name__}. Leave it out of the '
                    'result of evaluate().'
                )
            self._add(key, array, weight)

    def to_host(self) -> dict[str, tuple[Any, float]]:
        """Return sum and weight of each key."""
        return {
            key: (_on_host(total), float(_on_host(self._weights[key])))
            for key, total in self._sums.items()
        }

    def _add(self, key: str, value: Any, weight: Any) -> None:
        value = value.astype(np.float64) if is_array(value) else np.float64(value)
        with np.errstate(invalid='ignore', over='ignore'):  # a loss that diverged is a result
            self._sums[key] = self._sums.get(key, 0.0) + value * weight
        self._weights[key] = self._weights.get(key, 0.0) + weight


@dataclass(frozen=True)
class RankResult:
    """What one rank found: its number of samples, and sum and weight of each key."""

    n_samples: int
    sums: dict[str, tuple[Any, float]]


def combine(results: Sequence[RankResult]) -> dict[str, Any]:
    """Return the mean of each key over the samples for which it was reported.

    Parameters
    ----------
    results : sequence of RankResult
        One of each rank. Keys may differ, as long as ranks with samples have some in common.

    Returns
    -------
    dict
        Floats, and float64 arrays where arrays were reported; keys in the order of the ranks.

    Raises
    ------
    MismatchError
        Two ranks with samples have no key in common.
    """
    _check_keys(results)
    keys = dict.fromkeys(key for result in results for key in result.sums)
    return {key: _mean(key, results) for key in keys}


def _mean(key: str, results: Sequence[RankResult]) -> Any:
    found = [result.sums[key] for result in results if key in result.sums]
    weight = math.fsum(w for _, w in found)
    shapes = {np.shape(total) for total, _ in found}
    if len(shapes) > 1:
        raise MismatchError(
            f'create_multi_node_evaluator: the ranks report {key!r} in different shapes {shapes}. '
            'Report arrays of one shape.'
        )
    if not weight:
        return math.nan
    if shapes == {()}:
        return exact_sum([total for total, _ in found]) / weight
    with np.errstate(invalid='ignore', over='ignore'):
        return np.sum([total for total, _ in found], axis=0) / weight


def exact_sum(values: Sequence[float]) -> float:
    """Return the sum, rounded once; NaN for infinities of both signs.

    >>> exact_sum([1e100, 1.0, -1e100]), exact_sum([math.inf, -math.inf])
    (1.0, nan)
    """
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # too large, or infinities of both signs
        return float(sum(values))


def _check_keys(results: Sequence[RankResult]) -> None:
    """Every rank with samples must share a key with the first one that has samples."""
    busy = [(rank, result) for rank, result in enumerate(results) if result.n_samples]
    for rank, result in busy[1:]:
        first, expected = busy[0][0], busy[0][1].sums
        if not (result.sums.keys() & expected.keys()) and (result.sums or expected):
            raise MismatchError(
                'create_multi_node_evaluator: the ranks report different values, expected '
                f'{sorted(expected)} as on rank {first} but got {sorted(result.sums)} '
                f'(rank {rank} of {len(results)}). Report the same names on all ranks.'
            )


def _array(value: Any) -> Any:
    return value.array if isinstance(value, chainer.Variable) else value


def _on_cpu(value: Any) -> Any:
    return cuda.to_cpu(value) if is_array(value) else value


def _on_host(value: Any) -> Any:
    array = np.asarray(_on_cpu(value), np.float64)
    return float(array) if array.ndim == 0 else array
