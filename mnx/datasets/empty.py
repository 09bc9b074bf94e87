"""Data sets without data, for ranks that take part in a model but read nothing."""

from __future__ import annotations

from collections.abc import Sized


def create_empty_dataset(dataset: Sized) -> list[tuple[()]]:
    """Return a data set of as many empty examples as `dataset` has.

    In a model that is spread over ranks, the ranks without an input still need an iterator that
    ends its epochs with the others'.

    Parameters
    ----------
    dataset : anything with a length
        The data set of the rank that has the input.

    Returns
    -------
    list of ()
        One empty tuple for each example: a converter makes no array of it.

    Examples
    --------
    >>> create_empty_dataset([1.5, 2.5, 3.5])
    [(), (), ()]
    """
    return [()] * len(dataset)
