"""Batches for this rank: the global order cut by range arithmetic; any number of sites, ranks and workers sees the same
samples."""

import logging
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isthmus.data.admission import check_real_rest
from isthmus.data.audit import Journal
from isthmus.data.batches import BatchReader, Cutting, Microbatch, make_microbatches
from isthmus.data.config import DataConfig
from isthmus.data.corpus import Corpus, mixture_of
from isthmus.data.extras import need
from isthmus.data.mixture import Mixture
from isthmus.data.order import Order
from isthmus.data.phases import PhaseLog
from isthmus.data.shares import Division
from isthmus.data.streams import Stream
from isthmus.errors import UserError

__all__ = ["Microbatch", "MixtureLoader", "validate_corpus"]


class MixtureLoader:
    """Serves the samples of one data-parallel rank, step by step.

    Its state is the number of samples served to all, and the log of mixtures: it goes on with any number of sites,
    ranks and workers. A state of another mixture than the configured one is continued with the configured one.

    Args:
        division: how a global batch is divided over sites and their ranks.
        site, rank: number of this site, and of this rank among its data-parallel ranks.
        journal: keeps the record that `isthmus data where` and `audit` read.
    """

    def __init__(
        self,
        corpus: Corpus,
        mixture: Mixture,
        config: DataConfig,
        *,
        sequence_length: int,
        global_batch: int,
        micro_batch: int,
        division: Division,
        site: int = 0,
        rank: int = 0,
        journal: Journal | None = None,
        tell: Callable[[str], None] = logging.info,
    ) -> None:
        self._corpus, self._mixture, self._config = corpus, mixture, config
        self._global_batch, self._division, self._site, self._rank = global_batch, division, site, rank
        self._journal, self._tell = journal, tell
        self._cutting = Cutting(
            sequence_length=sequence_length,
            micro_batch=micro_batch,
            vocab_size=corpus.vocab_size,
            end=corpus.end,
            tell_documents=config.mask_documents or config.reset_positions,
            mask_ends=config.mask_documents,
            skip=tuple(range(start, stop) for start, stop in config.skip),
        )
        self.log = PhaseLog.begin(mixture)
        self.order: Order = self.log.order()
        self._samples = 0
        self._skipped: list[tuple[int, int]] = []  # beyond those of the configuration
        self._bad = 0
        self._steps: Iterator[list[Microbatch]] | None = None

    def next_step(self) -> list[Microbatch]:
        """Return this rank's microbatches of the next global batch and move on.

        Raises:
            UserError: more windows than `data.max_bad_windows` could not be read.
        """
        if self._steps is None:
            self._steps = self._begin()
        batches = next(self._steps)
        mine = self._division.of_rank(range(self._samples, self._samples + self._global_batch), self._site, self._rank)
        self._samples += self._global_batch
        if self._journal:
            self._journal.consumed(mine)
        self._count_bad(batches)
        return batches

    def samples(self, numbers: Sequence[int]) -> list[Microbatch]:
        """Return any samples of the order, as those of a site whose round was lost; the state stays as it is."""
        return self._reader().read(numbers)

    def skip_samples(self, ranges: Iterable[range]) -> None:
        """Leave samples out of the loss from the next step on, beside those of `data.skip`; the state keeps them."""
        new = [samples for samples in ranges if samples not in self._cutting.skip]
        self._skipped += [(samples.start, samples.stop) for samples in new]
        self._cutting = replace(self._cutting, skip=(*self._cutting.skip, *new))
        self._steps = None

    def mix(self) -> dict[str, int]:
        """Return how many samples each source has given so far, over all ranks."""
        return self.order.counts(0, self._samples)

    def held_out(self, samples_per_source: int, *, multiple: int, part: int, parts: int) -> list[Microbatch]:
        """Return one of several parts of the held-out windows, evenly spread over each source, always the same ones.

        The number of microbatches is a multiple of `multiple` and equal for every part; padding has mask 0.
        """
        length, micro_batch = self._cutting.sequence_length, self._cutting.micro_batch
        windows: list[tuple[str, int]] = []
        for name, source in self._corpus.sources.items():
            count = source.held_out.windows(length)
            taken = min(samples_per_source, count)
            windows += [(name, index * count // taken) for index in range(taken)]
        mine = windows[part::parts]
        per_rank = -(-len(windows) // parts)
        batches = -(-per_rank // micro_batch)
        rows = -(-batches // multiple) * multiple * micro_batch
        found = np.zeros((rows, length + 1), dtype=np.int64)
        for row, (name, index) in enumerate(mine):
            found[row] = self._held_out_window(self._corpus.sources[name].held_out, index)
        mask = np.zeros((rows, length), dtype=np.float32)
        mask[: len(mine)] = 1
        names = [name for name, _ in mine] + [""] * (rows - len(mine))
        tokens, labels = (np.ascontiguousarray(part) for part in (found[:, :-1], found[:, 1:]))
        return make_microbatches(tokens, labels, mask, names, self._cutting, {}, {})

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._samples, "log": self.log.dump(), "skip": [list(pair) for pair in self._skipped]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            UserError: a source's content, the seed or the sequence length is not what the run began with, or an edited
                mixture has too little real data from here on.
        """
        self._samples = int(state["samples"])
        self.log = PhaseLog.load(state["log"])
        before = self.log.entries[-1].fingerprint
        edited = self.log.go_on(self._mixture, self._samples)
        self.order = self.log.order()
        if edited:
            synthetic = {name: source.synthetic for name, source in self._corpus.sources.items()}
            check_real_rest(self._mixture, self.order, self._samples, synthetic, self._config.real_floor)
            self._tell(
                f"the mixture was edited: from sample {self._samples} on it is {self._mixture.fingerprint}, "
                f"before it was {before}"
            )
        self._steps = None
        self.skip_samples(range(start, stop) for start, stop in state.get("skip", []))

    def _begin(self) -> Iterator[list[Microbatch]]:
        if self._journal:
            self._journal.begin(self._samples, self._global_batch, self._division, self.log.dump(), self._cutting.skip)
        samples = range(self._samples, sys.maxsize - 2 * self._global_batch, self._global_batch)
        steps = _Steps(self._reader(), self._division, self._site, self._rank, self._global_batch, samples)
        if not self._config.workers:
            return iter(steps)
        loader = need("torchdata.stateful_dataloader", "'isthmus[mixture]'").StatefulDataLoader(
            _dataset_of(steps),
            batch_size=None,
            num_workers=self._config.workers,
            prefetch_factor=self._config.prefetch,
            # Its own state is bound to the number of workers; ours is a number of samples, so it need keep none.
            snapshot_every_n_steps=sys.maxsize,
            worker_init_fn=_outlive_requests,
        )
        return iter(loader)

    def _reader(self) -> BatchReader:
        streams = {name: source.train for name, source in self._corpus.sources.items()}
        return BatchReader(self.order, streams, self._cutting)

    def _held_out_window(self, stream: Stream, index: int) -> np.ndarray:
        rows = np.empty((1, self._cutting.sequence_length + 1), dtype=stream.dtype)
        if bad := stream.read([index * self._cutting.sequence_length], rows).bad:
            raise UserError(bad[0], where="held-out tokens", fix="copy the data anew")
        return rows[0]

    def _count_bad(self, batches: Sequence[Microbatch]) -> None:
        for reason in (reason for batch in batches for reason in batch.bad):
            self._bad += 1
            logging.warning("masked: %s", reason)
            if self._bad > self._config.max_bad_windows:
                raise UserError(
                    f"{self._bad} windows could not be read, the last: {reason}",
                    where="data.max_bad_windows",
                    fix="check the data with `isthmus data inspect --verify`, or raise the limit",
                )


class _Steps:
    """The steps that one process reads: all of them, or every so many where several workers take turns."""

    def __init__(
        self, reader: BatchReader, division: Division, site: int, rank: int, batch: int, samples: range
    ) -> None:
        self._arguments = (division, site, rank, batch)
        self._reader, self._samples = reader, samples

    def __iter__(self) -> Iterator[list[Microbatch]]:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        samples = self._samples[worker.id :: worker.num_workers] if worker else self._samples
        return self._reader.steps(*self._arguments, samples)


def _outlive_requests(worker: int) -> None:
    """Keep a worker alive through a request to stop, which schedulers send to every process of a job.

    Its rank goes on to the end of the step and needs it. The second SIGTERM ends it: then it is its rank that asks.
    """

    def end_next_time(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, end_next_time)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _dataset_of(steps: _Steps) -> Any:
    from torch.utils.data import IterableDataset

    class Steps(IterableDataset):
        def __iter__(self) -> Iterator[list[Microbatch]]:
            return iter(steps)

    return Steps()


def validate_corpus(
    corpus: Corpus,
    config: DataConfig,
    *,
    sequence_length: int,
    global_batch: int,
    steps: int,
    seed: int,
    held_out: bool,
) -> Mixture:
    """Return the mixture of a run, refused if it cannot feed it.

    Raises:
        UserError: a source without one window, fewer windows than one global batch, caps that leave too few, nothing to
            evaluate on, or a wish to know documents that have no known end.
    """
    for name, source in corpus.sources.items():
        if not source.train.windows(sequence_length) or not len(source.train):
            raise UserError(
                f"has {len(source.train)} training tokens, fewer than one sample of {sequence_length} + 1",
                where=f"data.sources.{name}",
                fix="add text or lower train.sequence_length",
            )
        if held_out and not source.held_out.windows(sequence_length):
            raise UserError(
                f"has {len(source.held_out)} held-out tokens, fewer than one sample of {sequence_length} + 1",
                where=f"data.sources.{name}",
                fix="add documents, raise data.held_out or set eval.every_steps=0",
            )
    if (config.mask_documents or config.reset_positions) and corpus.end is None:
        raise UserError(
            "needs the end-of-document token, and nothing says which it is",
            where="data.mask_documents" if config.mask_documents else "data.reset_positions",
            fix="give data.tokenizer, or import the shards with tokenizer=FILE",
        )
    samples = steps * global_batch
    mixture = mixture_of(corpus, config, sequence_length=sequence_length, samples=samples, seed=seed)
    available = sum(source.shape.windows for source in mixture.sources.values())
    if available < global_batch:
        raise UserError(
            f"the corpus has {available} samples of {sequence_length} tokens, fewer than one batch of {global_batch}",
            where="data.sources",
            fix="add text or lower train.global_batch",
        )
    mixture.segments()
    return mixture
