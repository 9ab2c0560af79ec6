"""The tokenizer of a run, for whoever takes its model elsewhere."""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from isthmus.config import load_resolved
from isthmus.data.corpus import build_corpus
from isthmus.data.tokenizer import END_ID, END_OF_DOCUMENT
from isthmus.data.tokenizers import load_text_tokenizer
from isthmus.errors import UserError
from isthmus.train.config import Config
from isthmus.train.export.huggingface import TokenizerFile


def tokenizer_of(config_file: Path, tell: Callable[[str], None]) -> TokenizerFile | None:
    """Return the tokenizer of the run with this configuration; where there is none to be had, say why."""
    try:
        config = load_resolved(Config, config_file)
        path = config.data.tokenizer
        if path is None:
            trained = build_corpus(config.data, config.model.vocab_size).tokenizer
            if isinstance(trained, Tokenizer):
                return TokenizerFile(trained.to_str(), END_OF_DOCUMENT, END_ID)
        elif path.endswith(".json"):
            loaded = load_text_tokenizer(path)
            return TokenizerFile(Path(path).expanduser().read_text("utf-8"), loaded.decode([loaded.end]), loaded.end)
        reason = "it is not of the tokenizers library"
    except UserError as error:
        reason = str(error)
    tell(f"without the tokenizer: {reason}")
    return None
