"""Stop all ranks at the same iteration, when what they observe together gets no better."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chainer.training.triggers import EarlyStoppingTrigger

from mnx.training.observations import ObservationAggregator

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


class MultiNodeEarlyStoppingTrigger:
    """Chainer's ``EarlyStoppingTrigger`` on the mean over all ranks.

    Parameters
    ----------
    comm : CommunicatorBase
    check_trigger : trigger
        When to compare; it must fire at the same iterations on all ranks.
    monitor : str
        Name of the observed value. The mean over all ranks, and over the iterations since the
        last check, is compared; observed as ``monitor + suffix``.
    patience : int, optional
        How many checks without improvement are suffered; 3 by default, as Chainer's.
    mode : {'auto', 'max', 'min'}
    verbose : bool
        Rank 0 tells when the training is stopped.
    max_trigger : trigger
        When to stop at the latest.
    suffix : str
    **kwargs
        For ``EarlyStoppingTrigger``, such as ``patients``, the old name of `patience`.

    Notes
    -----
    Unlike Chainer's, it is saved by snapshots: a training that goes on keeps its patience.

    Examples
    --------
    >>> import mnx
    >>> comm = mnx.create_communicator('local')
    >>> stop = mnx.extensions.MultiNodeEarlyStoppingTrigger(
    ...     comm, monitor='validation/main/loss', patience=5, max_trigger=(30, 'epoch'))
    >>> stop.get_training_length()  # trainer = training.Trainer(updater, stop)
    (30, 'epoch')
    """

    def __init__(
        self,
        comm: CommunicatorBase,
        *,
        check_trigger: Any = (1, 'epoch'),
        monitor: str = 'main/loss',
        patience: int | None = None,
        mode: str = 'auto',
        verbose: bool = False,
        max_trigger: Any = (100, 'epoch'),
        suffix: str = '_aggregated',
        **kwargs: Any,
    ) -> None:
        self._aggregator = ObservationAggregator(
            comm,
            monitor,
            monitor + suffix,
            comm_trigger=copy.deepcopy(check_trigger),  # each asks one of its own
        )
        self._stop = EarlyStoppingTrigger(
            check_trigger=check_trigger,
            monitor=monitor + suffix,
            patience=patience,
            mode=mode,
            verbose=verbose and comm.rank == 0,
            max_trigger=max_trigger,
            **kwargs,
        )
        self._trainer: Any = None
        self._noted: Any = None  # the observation of the iteration that was asked about

    def __call__(self, trainer: Any) -> bool:
        """Tell whether to stop; the same on all ranks. Collective: all ranks call it."""
        self._trainer, self._noted = trainer, trainer.observation
        self._aggregator(trainer)
        return bool(self._stop(trainer))

    def get_training_length(self) -> tuple[float, str]:
        """Return when the training ends at the latest."""
        length: tuple[float, str] = self._stop.get_training_length()
        return length

    def serialize(self, serializer: Any) -> None:
        """Save or load what has been observed, the best value, and the checks since then."""
        with self._aggregator.with_one_more(self._unnoted()):
            self._aggregator.serialize(serializer['aggregator'])
        stop = self._stop
        stop.best = float(serializer('best', stop.best))
        stop.count = int(serializer('count', stop.count))
        for name in ('_max_trigger', '_interval_trigger'):
            trigger = getattr(stop, name)
            if hasattr(trigger, 'serialize'):
                trigger.serialize(serializer[name])

    def _unnoted(self) -> Mapping[str, Any]:
        """Return what is observed in this iteration, if it has yet to be asked about.

        A trainer asks when the extensions are done, and a snapshot is one of them. The training
        that goes on from it asks, too, but observations are not saved.
        """
        now = {} if self._trainer is None else self._trainer.observation
        return {} if now is self._noted else now
