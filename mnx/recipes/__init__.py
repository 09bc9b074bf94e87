"""Recipes: a model and its training in a file of YAML, for the command ``mnx train``.

::

    file ──► document ──► schema ──► plan ──────► network, objective ──► training
             lines of     types,     shapes,      links, whole or        Chainer's Trainer
             each key     limits     who holds    split by the grid
                                     and sends
                                     what

Needs pydantic and PyYAML (extra `cli`), so ``import mnx`` leaves this package alone.
"""
