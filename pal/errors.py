"""What can go wrong on the user's side, as one tree; and what is worth a warning.

    PalError                 one sentence: what is wrong, with the value, and what to do
    ├── ConfigError          pipeline.yaml, --set or an option
    ├── DataError            a raw source or a prepared dataset
    ├── EncoderError         weights, tokenizer or the numbers an encoder produced
    ├── CacheError           a damaged or incomplete cache
    │   └── CacheMismatch    a sound cache made under another specification
    ├── TrainError           a head that cannot be trained as asked
    ├── EvaluationError      a run that cannot be evaluated as asked
    └── RewardError          an exported reward model, or what it was asked to score

The command line prints the sentence and exits with 1; every other exception is our own mistake and
keeps its traceback.
"""


class PalError(Exception):
    """Base of all errors that the user can fix."""


class ConfigError(PalError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(PalError):
    """A raw source or a prepared dataset is missing or unusable."""


class EncoderError(PalError):
    """An encoder cannot be loaded, or produced values that cannot be stored."""


class CacheError(PalError):
    """A cache is damaged, incomplete or not there."""


class CacheMismatch(CacheError):
    """A cache was made under another specification than the one asked for."""


class TrainError(PalError):
    """A head cannot be trained from these pairs and features."""


class EvaluationError(PalError):
    """A run cannot be evaluated on this dataset."""


class RewardError(PalError):
    """A reward model cannot be exported, loaded or asked as wanted."""


class PalWarning(UserWarning):
    """Something that can go on, but that the user will want to know: one sentence, shown on
    standard error."""
