"""The float32 copies of float16 parameters that Chainer updates where `use_fp32_update` is on.

They hold what float16 rounds away, and the parameters are rounded from them after each update. But
Chainer neither saves them nor looks at the parameters again: a training that went on without them
would be another one, and values that are written into the parameters alone would not last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import chainer
from chainer.backends import cuda
from numpy.typing import NDArray


def capture(optimizer: chainer.Optimizer) -> dict[str, NDArray[Any]]:
    """Return the copies there are, by the names of the parameters."""
    return {
        name: cuda.to_cpu(param.update_rule._fp32_param.array)
        for name, param in _updated(optimizer.target)
        if _is_there(param.update_rule._fp32_param)
    }


def restore(optimizer: chainer.Optimizer, found: Mapping[str, NDArray[Any]]) -> None:
    """Set the copies to what `capture` returned; others are made anew from the parameters."""
    for name, param in _updated(optimizer.target):
        master = chainer.Parameter(found[name], name=param.name) if name in found else None
        if master is not None:
            master.to_device(param.device)
        param.update_rule._fp32_param = master


def _updated(model: chainer.Link | None) -> Iterator[tuple[str, chainer.Parameter]]:
    named = () if model is None else sorted(model.namedparams(), key=lambda pair: pair[0])
    return ((name, param) for name, param in named if param.update_rule is not None)


def _is_there(master: Any) -> bool:
    return master is not None and master.array is not None
