"""The [data] section: where the text or its tokens come from, and how they are split."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from minigpt.frozen import Count, Frozen, Positive, PositiveFloat

Paths = str | Annotated[tuple[str, ...], Field(strict=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
NEEDED = {  # keys without which a source is none
    "text": {"path": "a file, a folder, a glob, or a list of them"},
    "tokens": {
        "path": "the training shards: a .bin file, a glob, or a list of them",
        "val_path": "the held-out shards: a .bin file, a glob, or a list of them",
        "vocab_size": "the number of ids that the tokenizer has",
    },
}
OWNERS = {
    "path": "'text' or 'tokens'",
    "column": "'text'",
    "val_path": "'tokens'",
    "vocab_size": "'tokens'",
    "end_of_text": "'tokens'",
}
TRAINED = ("bpe", "wordpiece")  # tokenizers that are made of the training text
HELD_OUT = "val"  # the name of the held-out part of the corpus among the eval sets


class DataConfig(Frozen):
    """Where the text comes from and how it is split.

    `source = "stdlib"`: the Python standard library's own source text. `source = "libraries"`: that
    and the source text of every installed library. `source = "text"`: the text files, folders and
    globs of `path`, .jsonl and .parquet files by the records of their `column`. `source =
    "tokens"`: uint16 shards of `path`, held-out ones of `val_path`, ids below `vocab_size`.

    `tokenizer` makes tokens of text: "bytes"; "bpe" or "wordpiece", trained on the training text to
    `vocab_size` ids (in a sweep every model's own); or the path of a tokenizer.json.

    `val_fraction` of the documents (chosen by content hash) is held out; the first `eval_tokens`
    held-out tokens measure every final loss, the first `curve_eval_tokens` the points of the
    training curves. `evals` names more held-out sets, each of paths like `path`, that measure the
    final models beside it. `max_epochs` allows repetition of the training text.
    """

    source: Literal["stdlib", "libraries", "text", "tokens"] = "stdlib"
    path: Paths | None = None
    column: Annotated[str, Field(min_length=1)] | None = None
    val_path: Paths | None = None
    vocab_size: Positive | None = None
    end_of_text: Count | None = None
    tokenizer: Annotated[str, Field(min_length=1)] = "bytes"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.12
    eval_tokens: Positive = 1_048_576
    curve_eval_tokens: Positive = 32_768
    evals: dict[Name, Paths] = Field(default_factory=dict)
    max_epochs: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _keys(self) -> Self:
        """Every source has the keys that it needs, and none that it would not use."""
        for key, what in NEEDED.get(self.source, {}).items():
            if not getattr(self, key):
                raise ValueError(f"source = '{self.source}' needs {key}: {what}")
        for key, owners in OWNERS.items():
            mine = f"'{self.source}'" in owners or self._may_have(key)
            if getattr(self, key) is not None and not mine:
                raise ValueError(
                    f"{key} belongs to source = {owners}; set source = {owners} or remove {key}"
                )
        evals = {f"evals.{name}": paths for name, paths in self.evals.items()}
        for key, paths in ({"path": self.path, "val_path": self.val_path} | evals).items():
            if "" in ((paths,) if isinstance(paths, str) else paths or ()):
                raise ValueError(f"{key} holds an empty string; '.' is the current folder")
        if self.curve_eval_tokens > self.eval_tokens:
            raise ValueError(
                f"curve_eval_tokens = {self.curve_eval_tokens} exceeds eval_tokens = "
                f"{self.eval_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _evals(self) -> Self:
        for name, paths in self.evals.items():
            if name == HELD_OUT:
                raise ValueError(
                    f"evals.{name}: '{name}' is the held-out part of the corpus itself; choose "
                    "another name"
                )
            if not paths:
                raise ValueError(f"evals.{name} names no file; give a file, a folder or a glob")
        return self

    @model_validator(mode="after")
    def _tokens(self) -> Self:
        if self.source != "tokens" or self.vocab_size is None:
            return self
        if self.tokenizer != "bytes":
            raise ValueError(
                f"tokenizer = '{self.tokenizer}' belongs to text, and source = 'tokens' has its "
                "tokens already; remove tokenizer"
            )
        if self.vocab_size > 65_536:
            raise ValueError(
                f"vocab_size = {self.vocab_size:,} exceeds the 65,536 ids of uint16 shards; "
                "use a smaller vocabulary"
            )
        if self.end_of_text is not None and self.end_of_text >= self.vocab_size:
            raise ValueError(
                f"end_of_text = {self.end_of_text} is not below vocab_size = {self.vocab_size}"
            )
        if self.val_fraction != type(self).model_fields["val_fraction"].default:
            raise ValueError(
                "val_fraction belongs to text, which is split; of source = 'tokens' val_path is "
                "held out: remove val_fraction"
            )
        return self

    def __hash__(self) -> int:
        """One for all fields, of which a dict has none of its own."""
        return hash(self.model_dump_json())

    @property
    def trains_tokenizer(self) -> bool:
        """Whether the tokenizer is made of the training text, one for each vocabulary size."""
        return self.tokenizer in TRAINED

    def _may_have(self, key: str) -> bool:
        """Whether `key` has a use that its owners among the sources do not tell."""
        if key == "column":
            return bool(self.evals) and self.source != "tokens"
        return key == "vocab_size" and self.trains_tokenizer
