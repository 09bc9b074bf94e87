"""Reading by other processes, as ChainerMN's FAQ says: a server of them before MPI is there."""

import multiprocessing

import chainer
import chainermn
import numpy as np


class Data(chainer.dataset.DatasetMixin):
    def __len__(self):
        return 16

    def get_example(self, i):
        kind = type(chainermn).__module__  # imported anew in the other process
        return i, multiprocessing.current_process().name != 'MainProcess', kind


def main():
    multiprocessing.set_start_method('forkserver')
    process = multiprocessing.Process()
    process.start()
    process.join()
    comm = chainermn.create_communicator('naive')
    data = chainermn.scatter_dataset(Data() if comm.rank == 0 else None, comm)
    iterator = chainer.iterators.MultiprocessIterator(
        data, 4, n_processes=1, repeat=False, shuffle=False
    )
    found = comm.gather_obj([example for batch in iterator for example in batch])
    iterator.finalize()
    if comm.rank == 0:
        examples = np.concatenate(found).tolist()
        print('examples', *[i for i, _, _ in examples])
        print('kinds', *{kind for _, elsewhere, kind in examples if elsewhere == 'True'})


if __name__ == '__main__':
    main()
