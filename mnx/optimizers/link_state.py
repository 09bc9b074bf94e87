"""What a forward pass changes in a model besides its result, so that it can be taken back."""

from __future__ import annotations

from typing import Any

import chainer

from mnx.arrays import Array, is_array


class LinkState:
    """Attributes and persistent values of all links of a model, as they were.

    Parameters and their values are not part of it. Attributes are kept by reference: one that
    is changed in place (a list, say) is not taken back, except persistent arrays.
    """

    def __init__(self, model: chainer.Link) -> None:
        self._links = [(link, dict(link.__dict__), _arrays(link)) for link in model.links()]

    def restore(self) -> None:
        """Put everything back."""
        for link, attributes, arrays in self._links:
            link.__dict__.clear()
            link.__dict__.update(attributes)
            for name, array in arrays.items():
                getattr(link, name)[...] = array


def _arrays(link: chainer.Link) -> dict[str, Array]:
    values: dict[str, Any] = {name: getattr(link, name) for name in link._persistent}
    return {name: value.copy() for name, value in values.items() if is_array(value)}
