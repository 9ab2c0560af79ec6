"""What is refused at the mixture's door: too little real data, and sources that may hold a benchmark's words."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from isthmus.data.accounting import Account
from isthmus.data.dedup.benchmarks import BenchmarkNgrams, benchmark_hashes, load_benchmarks
from isthmus.data.documents import Document
from isthmus.data.mixture import Mixture
from isthmus.data.order import LARGEST_BLOCK, Order
from isthmus.errors import UserError


def check_real_share(found: Account, synthetic: Mapping[str, bool], floor: float) -> None:
    """Refuse a mixture with a phase that has too little real data (a floor bounds the error: arXiv 2404.01413).

    Raises:
        UserError: naming the phase and the synthetic sources.
    """
    for phase in found.phases:
        real = phase.real_share(synthetic)
        if real < floor - 1e-9:
            raise _too_little(phase.name, real, synthetic, floor)


def check_real_rest(mixture: Mixture, order: Order, sample: int, synthetic: Mapping[str, bool], floor: float) -> None:
    """Refuse an edited mixture that has too little real data from the sample on where it takes over.

    What it gives then is not what it plans for a run of its own: real sources may have given nearly all that their caps
    allow before.

    Args:
        order: of the run, the samples of the edited mixture included.

    Raises:
        UserError: naming the phase and the synthetic sources.
    """
    ends = [min(following.start, mixture.samples) for _, following in pairwise(mixture.phases)] + [mixture.samples]
    for phase, stop in zip(mixture.phases, ends, strict=True):
        first = max(phase.start, sample)
        if first >= stop:
            continue
        given = {name: count for name, count in order.counts(first, stop).items() if count}
        real = sum(count for name, count in given.items() if not synthetic.get(name))
        # Turns are whole samples and quotas at best 65,536ths: so far each source may be off.
        rounding = len(given) * (1 + (stop - first) / LARGEST_BLOCK)
        if real + rounding < floor * (stop - first):
            name = f"{phase.name or 'whole run'} from sample {first} on"
            raise _too_little(name, real / (stop - first), synthetic, floor)


def _too_little(phase: str, real: float, synthetic: Mapping[str, bool], floor: float) -> UserError:
    names = ", ".join(name for name, is_synthetic in synthetic.items() if is_synthetic)
    return UserError(
        f"{phase} has {real:.1%} real data, the floor is {floor:.0%} (synthetic: {names})",
        where="data.real_floor",
        fix="give real sources more weight, or lower the floor knowingly",
    )


class Benchmarks:
    """The benchmarks that no source may hold words of.

    Raises:
        UserError: a file cannot be read or holds too few words.
    """

    def __init__(self, files: Sequence[str], ngram: int) -> None:
        self._files, self._ngram = list(files), ngram
        self._loaded: BenchmarkNgrams | None = None

    def __bool__(self) -> bool:
        return bool(self._files)

    def check_shards(self, name: str, recorded: Mapping[str, Any]) -> None:
        """Refuse shards whose manifest does not say that they were held against every benchmark.

        Args:
            recorded: `decontaminated` of the manifest. Texts that share no n words in a row share no more.

        Raises:
            UserError: naming the first benchmark that is missing.
        """
        covered = {entry for ngram, hashes in recorded.items() if int(ngram) <= self._ngram for entry in hashes}
        for file in self._files:
            ((_, (mine,)),) = benchmark_hashes([file], self._ngram).items()
            if mine not in covered:
                raise UserError(
                    f"was not held against {file} by {self._ngram} words or fewer",
                    where=f"data.sources.{name}",
                    fix="prepare or synthesize it with this file in data.decontaminate.files",
                )

    def check_texts(self, name: str, documents: Sequence[Document]) -> None:
        """Refuse texts that share a run of words with a benchmark.

        Raises:
            UserError: naming the document and the words.
        """
        if self._loaded is None:
            self._loaded = load_benchmarks(self._files, self._ngram)
        for document in documents:
            if words := self._loaded.match(document.text):
                raise UserError(
                    f"{document.identity} has a benchmark's words: {words[:80]}",
                    where=f"data.sources.{name}",
                    fix="remove the document, or prepare the source with data.decontaminate",
                )
