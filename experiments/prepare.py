"""A config made ready: everything that can be wrong with a sweep is found here, before compute."""

from pathlib import Path

from experiments import config as configs
from experiments import manifest
from experiments.config import ConfigError, SweepConfig
from experiments.plan import expand
from experiments.spec import TrunkSpec
from minigpt import data


def prepare(
    path: Path, overrides: list[str]
) -> tuple[SweepConfig, data.CorpusInfo, list[TrunkSpec]]:
    """The checked config, its corpus (tokenised if it is new) and its trunks.

    Raises ConfigError naming the file, key, value, rule and remedy.
    """
    config = configs.load(path, overrides)
    runs_dir = Path(config.runs_dir)
    try:
        corpus = data.prepare(config.data, runs_dir / "data", leave_out=runs_dir).info
        trunks = expand(config, corpus)
        manifest.check(config, corpus)
    except (ConfigError, data.DataError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{path}: runs_dir = {config.runs_dir!r}: {error}; choose a folder you can write to"
        ) from None
    return config, corpus, trunks
