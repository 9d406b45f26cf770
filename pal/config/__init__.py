"""What pipeline.yaml may say: one frozen model per component, strict loading, no torch."""

from pal.config.audit import AuditConfig
from pal.config.base import (
    Component,
    Count,
    Fraction,
    Salt,
    keys_of,
)
from pal.config.data import (
    ComparisonsConfig,
    DataConfig,
    DatasetConfig,
    GroupedStatementsConfig,
    Grouping,
    ImageSourceConfig,
    PlantedGroupsConfig,
)
from pal.config.embed import (
    EmbedConfig,
    EncoderConfig,
)
from pal.config.heads import (
    AdaptConfig,
    EvaluateConfig,
    SweepConfig,
    TrainConfig,
)
from pal.config.layers import (
    Settings,
    flatten,
    load,
    load_overrides,
    presets,
    reference,
)
from pal.config.whole import (
    Config,
    PathsConfig,
    ServeConfig,
)

__all__ = [
    "AdaptConfig",
    "AuditConfig",
    "ComparisonsConfig",
    "Component",
    "Config",
    "Count",
    "DataConfig",
    "DatasetConfig",
    "EmbedConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "Fraction",
    "GroupedStatementsConfig",
    "Grouping",
    "ImageSourceConfig",
    "PathsConfig",
    "PlantedGroupsConfig",
    "Salt",
    "ServeConfig",
    "Settings",
    "SweepConfig",
    "TrainConfig",
    "flatten",
    "keys_of",
    "load",
    "load_overrides",
    "presets",
    "reference",
]
