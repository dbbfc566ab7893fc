"""A config made ready: everything that can be wrong with a sweep is found here, before compute."""

from pathlib import Path

from experiments import config as configs
from experiments import manifest
from experiments.config import ConfigError, SweepConfig
from experiments.corpora import Corpora, resolved
from experiments.models import vocabularies
from experiments.plan import expand
from experiments.spec import TrunkSpec
from minigpt import data


def prepare(path: Path, overrides: list[str]) -> tuple[SweepConfig, Corpora, list[TrunkSpec]]:
    """The checked config, its corpora (tokenised if they are new) and its trunks.

    Raises ConfigError naming the file, key, value, rule and remedy.
    """
    config = configs.load(path, overrides)
    try:
        corpora = _corpora(config)
        trunks = expand(config, corpora)
        manifest.check(config, corpora)
    except (ConfigError, data.DataError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{path}: runs_dir = {config.runs_dir!r}: {error}; choose a folder you can write to"
        ) from None
    return config, corpora, trunks


def _corpora(config: SweepConfig) -> Corpora:
    """The corpus of each vocabulary, by the tokenizers that a started sweep has."""
    runs_dir = Path(config.runs_dir)
    found, tokenizers = {}, {}
    for size in vocabularies(config):
        corpus = data.prepare(
            resolved(config.data, size),
            runs_dir / "data",
            leave_out=runs_dir,
            stored=manifest.tokenizer(config, size),
        )
        found[size] = corpus.info
        if corpus.info.tokenizer_sha256 and corpus.tokenizer:
            tokenizers[corpus.info.tokenizer_sha256] = corpus.tokenizer.to_json()
    return Corpora(found, tokenizers)
