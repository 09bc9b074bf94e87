"""What an array is to mnx: which dtypes travel, in which layout, and how they are reduced.

The rules for bool, integers, float16 and bfloat16 live here and nowhere else:

- *Moving* an array (bcast, gather, send ...) moves its bytes, so every dtype is exact.
- *Reducing* it goes through `reduction`, which names the dtype that MPI adds up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mnx import kernels, recycling
from mnx.errors import ArgumentError, DtypeError, MissingPackageError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Array = Any  # numpy.ndarray or cupy.ndarray; CuPy is optional, so it cannot be named here
Kind = tuple[np.dtype[Any], tuple[int, ...]]

OPS = ('sum', 'mean', 'max', 'min', 'prod')

# The position in this tuple is the dtype's number in a message header.
DTYPE_NAMES = (
    'bool',
    'int8',
    'int16',
    'int32',
    'int64',
    'uint8',
    'uint16',
    'uint32',
    'uint64',
    'float16',
    'float32',
    'float64',
    'longdouble',
    'complex64',
    'complex128',
    'clongdouble',
    'bfloat16',
)

MAX_NDIM = 14

ALONE_FROM = 2 * 1024 * 1024  # bytes of an array, from which on it shares its memory with no other


@dataclass(frozen=True)
class Reduction:
    """How arrays of one dtype are reduced by one operation.

    Attributes
    ----------
    wire : numpy.dtype
        The dtype that is added up (or compared) on the way.
    op : str
        What the transport is asked for: 'sum', 'max', 'min' or 'prod'.
    result : numpy.dtype
        The dtype of the result.
    """

    wire: np.dtype[Any]
    op: str
    result: np.dtype[Any]

    @cached_property
    def is_of_nans(self) -> bool:
        """Whether there may be NaNs where the largest or smallest is looked for."""
        return self.op in ('max', 'min') and self.wire.kind == 'f'


def is_array(x: object) -> bool:
    """Tell whether `x` is a NumPy or CuPy array (or a NumPy scalar)."""
    return isinstance(x, (np.ndarray, np.generic)) or on_gpu(x)


def on_gpu(x: object) -> bool:
    """Tell whether `x` lives in the memory of a GPU."""
    if type(x) is np.ndarray:
        return False
    cupy = sys.modules.get('cupy')
    return cupy is not None and isinstance(x, cupy.ndarray)


def module_of(x: Array) -> Any:
    """Return the module `x` belongs to: numpy or cupy."""
    return sys.modules['cupy'] if on_gpu(x) else np


def synchronize(x: Array) -> None:
    """Wait for the kernels that still write `x`, before MPI reads it. Nothing to do on a CPU."""
    if on_gpu(x):
        sys.modules['cupy'].cuda.get_current_stream().synchronize()


def place_of(*arrays: Array) -> str:
    """Return where arrays are: 'cpu' or 'gpu'; they must be in one place.

    Raises
    ------
    ArgumentError
        Some are here, some are there.
    """
    first = 'gpu' if arrays and on_gpu(arrays[0]) else 'cpu'
    if len(arrays) > 1 and any(on_gpu(x) != (first == 'gpu') for x in arrays):
        raise ArgumentError(
            "some arrays are NumPy's and some are CuPy's, but those of one call travel one way. "
            'Move them to one place.'
        )
    return first


def copy_across(source: Array, target: Array) -> None:
    """Copy a flat array to one of equal size and dtype, between host and GPU or on the host.

    Returns when both may be used again: CuPy's `set` from pinned memory would return before.
    """
    if source.size == 0:
        return
    if on_gpu(source):
        source.get(out=target)
    elif on_gpu(target):
        target.set(source)
        synchronize(target)
    else:
        np.copyto(target, source)


def to_place(x: Array, place: str) -> Array:
    """Return the contiguous array `x` on the CPU or the current GPU: itself if it is there."""
    if on_gpu(x) == (place == 'gpu'):
        return x
    moved = empty_at(place, x.shape, x.dtype)
    copy_across(flat(x), flat(moved))
    return moved


def empty_at(place: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised array on the CPU or the current GPU; on recycled memory, if large.

    Raises
    ------
    MissingPackageError
        It should be on a GPU, but there is no CuPy.
    """
    if place == 'cpu':
        return recycling.empty(shape, dtype)
    try:
        import cupy
    except ImportError as error:
        raise MissingPackageError(
            f'another rank sent an array of CuPy, which is not installed here ({error}). '
            'Install mnx[cuda12] or mnx[cuda13], or send arrays of NumPy.'
        ) from error
    return cupy.empty(tuple(shape), dtype)


def way_to_empty(place: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], Array]:
    """Return what makes such arrays as `empty_at` does, without looking where each time."""
    if place != 'cpu':
        return partial(empty_at, place, shape, dtype)
    return partial(recycling.empty, shape, dtype)


def shares_block(x: Array) -> bool:
    """Tell whether arrays like `x` come as rows of one block: on the CPU, if they are not large.

    A large one has memory of its own, which is used again when that one array is gone.
    """
    return x.nbytes < ALONE_FROM and not on_gpu(x)


def block_like(x: Array, count: int) -> Array:
    """Return uninitialised memory for `count` arrays of the place, shape and dtype of `x`."""
    return empty_at(place_of(x), (count, *x.shape), x.dtype)


def rows_like(x: Array, count: int) -> tuple[Array, ...]:
    """Return `count` uninitialised arrays of the place, shape and dtype of `x`."""
    if shares_block(x):
        return rows_of(block_like(x, count))
    return tuple(empty_at(place_of(x), x.shape, x.dtype) for _ in range(count))


def rows_of(block: Array) -> tuple[Array, ...]:
    """Return the rows of an array as arrays, also if they hold one number each."""
    return tuple(block) if block.ndim > 1 else tuple(block[i, ...] for i in range(len(block)))


def pinned_empty(nbytes: int) -> Array:
    """Return `nbytes` of host memory, flat uint8, which GPUs copy at full speed."""
    import cupyx

    return cupyx.empty_pinned(nbytes, np.uint8)


@cache
def dtype_number(dtype: np.dtype[Any]) -> int:
    """Return the number of `dtype` in message headers, or -1 if it cannot travel."""
    if dtype.name in DTYPE_NAMES:
        return DTYPE_NAMES.index(dtype.name)
    # float128 and complex256 are the platform's names of these two
    names = {np.dtype(np.longdouble): 'longdouble', np.dtype(np.clongdouble): 'clongdouble'}
    return DTYPE_NAMES.index(names[dtype]) if dtype in names else -1


@cache
def dtype_of(number: int) -> np.dtype[Any]:
    """Return the dtype with that number in message headers."""
    name: Any = DTYPE_NAMES[number]
    if name == 'bfloat16':
        import ml_dtypes  # a sender had it, so a receiver needs it

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def sendable(x: Any, call: str) -> Array:
    """Return `x` as a C-contiguous, aligned array in native byte order, copied only if it is none.

    Subclasses of NumPy's arrays travel as plain ones.

    Raises
    ------
    DtypeError
        `x` is not an array, or its dtype cannot travel (objects, strings, structures, times).
    ArgumentError
        `x` has more than 14 dimensions.
    """
    if kind_of(x) is not None:
        return x  # as most are: the rest of this function takes three times as long
    if not is_array(x):
        raise DtypeError(
            f'{call}: needs a NumPy or CuPy array but got {type(x).__name__}. '
            "Pass a Variable's .array, or use the *_obj method for other objects."
        )
    if isinstance(x, np.ma.MaskedArray):
        raise DtypeError(
            f'{call}: a masked array cannot travel, its mask would be lost. '
            'Send its .data and its .mask, or fill it.'
        )
    x = x if on_gpu(x) else np.asarray(x)  # a matrix would not become flat
    native = x.dtype.newbyteorder('=')
    if dtype_number(native) < 0:
        raise DtypeError(
            f'{call}: dtype {x.dtype} cannot travel as an array. '
            'Use the *_obj method, or convert it to a number dtype.'
        )
    if x.ndim > MAX_NDIM:
        raise ArgumentError(f'{call}: arrays of {x.ndim} dimensions cannot travel; reshape it.')
    if not x.flags.c_contiguous or x.dtype != native or not (on_gpu(x) or x.flags.aligned):
        # not ascontiguousarray: it would turn a 0-d array into a 1-d one
        x = x.astype(native, order='C', copy=True)
    return x


def kind_of(x: object) -> Kind | None:
    """Return dtype and shape of an array of NumPy's that `sendable` returns as it is, or None."""
    found = kernels.kind(x)
    return _kind_of(x) if isinstance(found, bool) else found


def _kind_of(x: object) -> Kind | None:
    if type(x) is not np.ndarray or x.ndim > MAX_NDIM:
        return None
    dtype, flags = x.dtype, x.flags
    if not (dtype.isbuiltin and dtype.isnative):  # others may have no hash
        return None
    is_plain = flags.c_contiguous and flags.aligned and dtype_number(dtype) >= 0
    return (dtype, x.shape) if is_plain else None


def flat(x: Array) -> Array:
    """Return the contiguous array `x` as a 1-d view."""
    return x.reshape(-1)


def as_bytes(x: Array) -> Array:
    """Return the contiguous array `x` as a 1-d view of uint8."""
    found = kernels.as_bytes(x)
    return x.reshape(-1).view(np.uint8) if found is False else found


def address_of(x: Array) -> int:
    """Return where an array of host memory begins."""
    return int(x.__array_interface__['data'][0])


def empty_like(x: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return a new uninitialised array where `x` lives."""
    return module_of(x).empty(shape, dtype)


@cache
def reduction(dtype: np.dtype[Any], op: str) -> Reduction:
    """Decide how arrays of `dtype` are reduced by `op`.

    - float16 and bfloat16 are added up in float32 and rounded once, at the end.
    - The mean of integers and bools is float64, as in NumPy.
    - bool: ``sum`` and ``max`` are *or*, ``prod`` and ``min`` are *and*, as in NumPy.
    - Complex numbers have no order, so no ``max`` and ``min``.

    Raises
    ------
    ArgumentError
        `op` is not one of 'sum', 'mean', 'max', 'min', 'prod'.
    DtypeError
        `dtype` has no such operation.
    """
    if op not in OPS:
        raise ArgumentError(f'unknown operation {op!r}. Choose one of {", ".join(OPS)}.')
    if dtype.kind == 'c' and op in ('max', 'min'):
        raise DtypeError(f'{op} of {dtype} is not defined: complex numbers have no order.')
    plain = 'sum' if op == 'mean' else op
    if dtype.kind in 'biu' and op == 'mean':
        return Reduction(np.dtype(np.float64), plain, np.dtype(np.float64))
    if dtype.kind == 'b':
        logical = {'sum': 'max', 'prod': 'min'}.get(op, op)
        return Reduction(np.dtype(np.uint8), logical, dtype)
    if dtype.name in ('float16', 'bfloat16'):
        return Reduction(np.dtype(np.float32), plain, dtype)
    return Reduction(dtype, plain, dtype)
