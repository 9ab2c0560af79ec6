"""A caption track: cues with times, rows and speakers, whatever format they came in."""

from dataclasses import dataclass, field

SECONDS_OF_A_WORD = 0.5  # how long the last word of a cue is taken to last, where only its beginning is known


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a cue: its text without tags, whether its words were timed one by one, and who speaks."""

    text: str
    timed: bool = False
    speaker: str = ""
    last_word: float | None = None  # seconds at which the last timed word begins


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from `start` to `end` (seconds); blank rows are kept, they tell how captions roll."""

    start: float
    end: float
    rows: tuple[Row, ...]
    append: bool = False  # json3 and srv3: added to the window below what is there
    confidence: tuple[float, ...] = ()  # of its words, 0 to 1
    bad: bool = False  # a segment that speech recognition itself doubts


@dataclass(frozen=True, slots=True)
class Track:
    """The cues of a file in order. `separate` says that no cue repeats another (json3, srv3 and Whisper never do)."""

    format: str
    cues: tuple[Cue, ...]
    language: str = ""
    separate: bool = False


@dataclass(frozen=True, slots=True)
class Phrase:
    """A stretch of speech: each word of the video is in exactly one."""

    start: float
    end: float
    text: str
    speaker: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """A paragraph of a transcript."""

    start: float
    end: float
    text: str
    speaker: str = ""
    phrases: int = field(default=1)
