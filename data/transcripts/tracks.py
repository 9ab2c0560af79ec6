"""Which of a video's caption tracks to use, by the names that yt-dlp gives them and by what is known of the video."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# ISO 639-1.
_ALL_CODES = (
    "aaabaeafakamanarasavayazbabebgbibmbnbobrbscacechcocrcscucvcydadedvdzeeeleneoeseteufafffifjfofrfygagd"
    "glgngugvhahehihohrhthuhyhziaidieigiiikioisitiuiwjajvkakgkikjkkklkmknkokrkskukvkwkylalblglilnloltlulv"
    "mgmhmimkmlmnmrmsmtmynanbndnengnlnnnonrnvnyocojomorospapiplpsptqurmrnrorurwsascsdsesgsiskslsmsnsosqsr"
    "ssstsusvswtatetgthtitktltntotrtstttwtyugukuruzvevivowawoxhyiyozazhzu"
)
_CODES = frozenset(_ALL_CODES[at : at + 2] for at in range(0, len(_ALL_CODES), 2))
_FORMATS = ("json3", "srv3", "json", "ttml", "dfxp", "vtt", "srv2", "srv1", "xml", "srt", "sbv")  # most telling first
_BRACKETED = re.compile(r"\[([A-Za-z0-9_-]{4,40})\]$")


@dataclass(frozen=True, slots=True)
class TrackName:
    """What a file's name says: the video, the language, whether it is YouTube's original or translated from another."""

    key: str
    video: str
    language: str = ""
    original: bool = False
    translated: bool = False
    format: str = ""


def read_name(identity: str) -> TrackName:
    """Read `FOLDER/TITLE [ID].LANGUAGE.FORMAT`; a LANGUAGE is `en`, `en-US`, `en-orig`, `de-en` (translated)."""
    folder, _, name = identity.rpartition("/")
    stem, _, suffix = name.rpartition(".")
    rest, _, code = stem.rpartition(".")
    base, *more = code.split("-")
    language, original, translated = "", False, False
    if rest and base in _CODES and len(more) <= 2:
        language, stem = base, rest
        original = more[-1:] == ["orig"]
        translated = bool(more) and more[0] in _CODES
    bracketed = _BRACKETED.search(stem)
    return TrackName(
        f"{folder}/{stem}", bracketed[1] if bracketed else stem, language, original, translated, suffix.lower()
    )


def video_key(identity: str) -> str:
    """Return what the tracks of one video have in common."""
    return read_name(identity).key


def unused_tracks(
    identities: Sequence[str], languages: Mapping[str, str], *, keep_translations: bool
) -> dict[str, str]:
    """Return the tracks not to use and why: `translation`, or `same_track` (another format of one that is used).

    Args:
        languages: the language that is spoken in each video, by id, where it is known.
    """
    videos: dict[str, list[tuple[str, TrackName]]] = {}
    for identity in identities:
        name = read_name(identity)
        videos.setdefault(name.key, []).append((identity, name))
    unused: dict[str, str] = {}
    for tracks in videos.values():
        spoken = languages.get(tracks[0][1].video, "").partition("-")[0].lower()
        spoken = spoken or next((name.language for _, name in tracks if name.original), "")
        if not keep_translations:
            first_hand = [entry for entry in tracks if not entry[1].translated]
            if any(name.language == spoken for _, name in first_hand if spoken):
                first_hand = [entry for entry in first_hand if entry[1].language in ("", spoken)]
            if first_hand:
                unused |= {entry[0]: "translation" for entry in tracks if entry not in first_hand}
                tracks = first_hand
        best: dict[str, tuple[int, bool, str]] = {}
        for identity, name in tracks:
            # Beside `en-orig`, `en` is the same or written by a person: never worse.
            rank = (_FORMATS.index(name.format) if name.format in _FORMATS else len(_FORMATS), name.original, identity)
            before = best.get(name.language)
            if before is None or rank < before:
                best[name.language] = rank
            loser = identity if before is not None and rank >= before else before[2] if before else None
            if loser:
                unused[loser] = "same_track"
    return unused
