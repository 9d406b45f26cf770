"""What pipeline.yaml may say: one frozen model per component, strict loading, no torch."""

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
    DemoConfig,
    GroupedStatementsConfig,
    HhConfig,
    ImageSourceConfig,
    PairsColumns,
    PairsConfig,
    PersonaConfig,
    PersonalLlmConfig,
    PickafilterConfig,
    PickapicConfig,
    PrismConfig,
    SimulatedConfig,
    TldrConfig,
    UltraFeedbackPConfig,
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
)
from pal.config.whole import (
    Config,
    PathsConfig,
    ServeConfig,
)

__all__ = [
    "AdaptConfig",
    "ComparisonsConfig",
    "Component",
    "Config",
    "Count",
    "DataConfig",
    "DatasetConfig",
    "DemoConfig",
    "EmbedConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "Fraction",
    "GroupedStatementsConfig",
    "HhConfig",
    "ImageSourceConfig",
    "PairsColumns",
    "PairsConfig",
    "PathsConfig",
    "PersonaConfig",
    "PersonalLlmConfig",
    "PickafilterConfig",
    "PickapicConfig",
    "PrismConfig",
    "Salt",
    "ServeConfig",
    "Settings",
    "SimulatedConfig",
    "SweepConfig",
    "TldrConfig",
    "TrainConfig",
    "UltraFeedbackPConfig",
    "flatten",
    "keys_of",
    "load",
    "load_overrides",
    "presets",
]
