"""The corpora of a sweep: one text, and its tokens for every vocabulary that the models have."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from minigpt.config import DataConfig, ModelConfig
from minigpt.data import CorpusInfo


@dataclass(frozen=True)
class Corpora:
    """What is known of the corpus of each vocabulary size, in the order of the grid.

    Where no tokenizer is trained there is one corpus for all models, under None. `tokenizers` are
    theirs as JSON, by hash; bytes have none.
    """

    by_vocabulary: Mapping[int | None, CorpusInfo]
    tokenizers: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> CorpusInfo:
        """The corpus of the first vocabulary: what is said of its text is true of all."""
        return next(iter(self.by_vocabulary.values()))

    @property
    def least(self) -> int | None:
        """The ids that every model must know; None where each has a vocabulary of its own."""
        return self.first.vocab_size if None in self.by_vocabulary else None

    def of(self, model: ModelConfig) -> CorpusInfo:
        """The corpus that `model` is trained on."""
        return self.by_vocabulary[None if None in self.by_vocabulary else model.vocab_size]

    def arm(self, model: ModelConfig) -> list[str]:
        """What to call the arm of a vocabulary that is not the first: its losses are others."""
        mine = self.of(model)
        return [] if mine is self.first else [f"vocab={mine.vocab_size}"]


def resolved(config: DataConfig, vocab_size: int | None) -> DataConfig:
    """The data of the models of a vocabulary, where each has its own."""
    return config.model_copy(update={"vocab_size": vocab_size}) if vocab_size else config
