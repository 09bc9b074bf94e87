"""The packing kernels, as a share of what copying on the device itself can reach.

    python benchmarks/gpu_packing.py
    python benchmarks/gpu_packing.py --sets resnet50 --wires float16 --json packing.json

Packing reads every gradient once and writes the buffer once; a copy on the device moves as many
bytes. 100 % is a copy. Printed are the medians; needs a GPU and CuPy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable

import numpy as np
from parameter_sets import SETS

from mnx.packing import Packer, plan


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median time on the device, after a warm-up."""
    import cupy

    times = []
    for repeat in range(repeats + 3):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        if repeat >= 3:
            times.append(cupy.cuda.get_elapsed_time(start, stop))
    return statistics.median(times)


def rows(set_name: str, wire: str, repeats: int) -> list[dict[str, object]]:
    """Return one row for each way to pack and unpack."""
    import cupy

    arrays = [cupy.random.standard_normal(s).astype('f4') for s in SETS[set_name]()]
    (bucket,) = plan([x.shape for x in arrays], [np.dtype(wire)] * len(arrays), float('inf'))
    packer = Packer()
    buffer = packer.pack(bucket, arrays)
    moved = sum(x.nbytes for x in arrays) + buffer.nbytes
    source = cupy.ones(moved // 2, 'u1')
    target = cupy.empty_like(source)
    copy = milliseconds(lambda: cupy.copyto(target, source), repeats)
    found = [{'what': 'copy', 'ms': copy, 'share': 1.0}]
    for batched in (True, False):
        how = 'one kernel' if batched else 'one by one'
        for what, run in {
            'pack': lambda b=batched: packer.pack(bucket, arrays, 0.5, batched=b),
            'unpack': lambda b=batched: packer.unpack(bucket, buffer, arrays, 3.0, batched=b),
        }.items():
            ms = milliseconds(run, repeats)
            found.append({'what': f'{what}, {how}', 'ms': ms, 'share': copy / ms})
    return [{'set': set_name, 'wire': wire, 'GB/s': moved / r['ms'] / 1e6, **r} for r in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sets', default=','.join(SETS))
    parser.add_argument('--wires', default='float32,float16')
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--json', metavar='FILE', help='write the rows to this file, too')
    options = parser.parse_args()
    try:
        import cupy

        print(cupy.cuda.runtime.getDeviceProperties(0)['name'].decode())
    except (ImportError, RuntimeError) as error:
        sys.exit(f'gpu_packing: needs a GPU and CuPy ({error}).')
    table = []
    for set_name in options.sets.split(','):
        for wire in options.wires.split(','):
            print(f'\n{set_name}, {wire} on the wire')
            for row in rows(set_name, wire, options.repeats):
                table.append(row)
                print(
                    f'  {row["what"]:20} {row["ms"]:8.3f} ms {row["GB/s"]:8.0f} GB/s '
                    f'{100 * row["share"]:5.0f} %'
                )
    if options.json:
        with open(options.json, 'w') as file:
            json.dump(table, file, indent=1)


if __name__ == '__main__':
    main()
