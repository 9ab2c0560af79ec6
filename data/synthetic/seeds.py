"""Real documents that recipes start from, by name of their kind."""

import hashlib
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from isthmus.data.documents import Document, read_source, transcript_text
from isthmus.data.shards.dataset import Dataset
from isthmus.data.synthetic.config import SeedsConfig
from isthmus.data.synthetic.context import SeedDocument
from isthmus.data.tokenizers import load_text_tokenizer
from isthmus.errors import UserError

_TITLE = re.compile(r"^#\s+(.+)$", re.MULTILINE)


def pages(seeds: SeedsConfig) -> Iterator[SeedDocument]:
    """The pages that every installation carries."""
    yield from _samples("web")


def talks(seeds: SeedsConfig) -> Iterator[SeedDocument]:
    """The transcripts that every installation carries."""
    yield from _samples("transcripts")


def manual(seeds: SeedsConfig) -> Iterator[SeedDocument]:
    """The topics of the Python manual: long documents that every installation carries."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield _seed(f"python/topics/{name}", name, text)


def files(seeds: SeedsConfig) -> Iterator[SeedDocument]:
    """The user's own text files."""
    for document in read_source("seeds", _path(seeds)):
        yield _of_document(document)


def dataset(seeds: SeedsConfig) -> Iterator[SeedDocument]:
    """A folder of `isthmus data prepare`, with its tokenizer beside the shards."""
    folder = Path(_path(seeds)).expanduser()
    opened = Dataset(folder)
    name = str(opened.manifest.tokenizer.get("name", ""))
    tokenizer = load_text_tokenizer(
        name if name.startswith("tiktoken:") else str(folder / f"tokenizer{Path(name).suffix}")
    )
    for number in range(opened.documents):
        found = opened.document(number)
        tokens = found.tokens.tolist()
        text = tokenizer.decode(tokens[:-1] if tokens and tokens[-1] == tokenizer.end else tokens)
        identity = found.lineage.get("document")
        yield _seed(identity.hex() if isinstance(identity, bytes) else f"{found.shard}/{number}", "", text)


def _path(seeds: SeedsConfig) -> str:
    if not seeds.path:
        raise UserError("is not given", where="data.seeds.path", fix=f"kind: {seeds.kind} needs it")
    return seeds.path


def _samples(folder: str) -> Iterator[SeedDocument]:
    root = resources.files("isthmus.data") / "samples" / folder
    for entry in sorted(root.iterdir(), key=lambda entry: entry.name):
        text = entry.read_text(encoding="utf-8")
        if entry.name.endswith((".vtt", ".srt")):
            text = transcript_text(text)
        yield _of_document(Document(f"samples/{folder}/{entry.name}", text))


def _of_document(document: Document) -> SeedDocument:
    heading = _TITLE.search(document.text[:500])
    name = Path(document.identity).stem.replace("-", " ").capitalize()
    return _seed(document.identity, heading[1].strip() if heading else name, document.text)


def _seed(identity: str, title: str, text: str) -> SeedDocument:
    content = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return SeedDocument(f"{identity}#{content}", title, text)
