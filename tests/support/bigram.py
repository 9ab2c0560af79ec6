"""An interpolated bigram model: the baseline that a trained language model has to beat."""

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer]


def held_out_loss(train: Tokens, held_out: Tokens, vocab_size: int) -> float:
    """Return the mean loss per token, in nats, of Jelinek-Mercer smoothing (1980) fitted on `train`.

    P(b | a) = x count(a b) / count(a) + (1 - x) (y count(b) / total + (1 - y) / V), with the best x and y on the
    held-out tokens themselves: a little kinder to the baseline than is fair.
    """
    pairs = np.zeros((vocab_size, vocab_size), np.float64)
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    unigram = np.bincount(train, minlength=vocab_size) / len(train)
    conditional = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    first, second = held_out[:-1], held_out[1:]
    bigram_p, unigram_p = conditional[first, second], unigram[second]
    best = np.inf
    for y in (0.9, 0.99, 0.999):
        smooth = y * unigram_p + (1 - y) / vocab_size
        for x in np.arange(0.05, 1.0, 0.05):
            best = min(best, float(-np.log(x * bigram_p + (1 - x) * smooth).mean()))
    return best
