"""Which set to go on from, and why not from the others: pure functions of what all ranks found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mnx.training.checkpoints.folder import Found, number_of


@dataclass(frozen=True)
class Skipped:
    """A set that is not used.

    Attributes
    ----------
    name, reason : str
    is_damage : bool
        Whether it was finished once; else it is what an interruption leaves behind.
    """

    name: str
    reason: str
    is_damage: bool

    def __str__(self) -> str:
        return f'{self.name}: {self.reason}'


def newest_first(finds: Sequence[Mapping[str, Found]]) -> list[str]:
    """Return the names of the sets that any rank has found."""
    return sorted({name for found in finds for name in found}, key=number_of, reverse=True)


def refusal(name: str, finds: Sequence[Mapping[str, Found]]) -> Skipped | None:
    """Return why a set cannot be used, as far as its manifests tell, or None.

    >>> refusal('000001_iteration_5', [{'000001_iteration_5': Found()}]).reason
    'unfinished, without a manifest on rank 0'
    """
    found = [of_rank.get(name) for of_rank in finds]
    problems = [f.problem if f else '' for f in found]
    without = [rank for rank, f in enumerate(found) if f and f.manifest is None]
    missing = [rank for rank, f in enumerate(found) if f is None]
    if any(problems):
        return Skipped(name, by_rank(problems), is_damage=True)
    if missing and len(missing) + len(without) < len(found):
        return Skipped(name, f'missing on {ranks_in_words(missing)}', is_damage=True)
    if without:
        where = ranks_in_words(without)
        return Skipped(name, f'unfinished, without a manifest on {where}', is_damage=False)
    if len({f.manifest.digest for f in found if f and f.manifest}) > 1:
        return Skipped(name, 'the ranks have manifests of different sets', is_damage=True)
    return None


def by_rank(reasons: Sequence[str]) -> str:
    """Return in one line what is wrong on which ranks.

    >>> by_rank(['', 'a is missing', 'a is missing', 'b is damaged'])
    'a is missing (on ranks 1, 2); b is damaged (on rank 3)'
    """
    ranks: dict[str, list[int]] = {}
    for rank, reason in enumerate(reasons):
        if reason:
            ranks.setdefault(reason, []).append(rank)
    return '; '.join(f'{reason} (on {ranks_in_words(r)})' for reason, r in ranks.items())


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Return 'rank 3' or 'ranks 1, 2'."""
    return f'rank{"s" * (len(ranks) > 1)} {", ".join(map(str, ranks))}'
