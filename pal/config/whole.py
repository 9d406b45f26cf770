"""pipeline.yaml as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from pal.config.base import Component, Count, unknown
from pal.config.data import DataConfig, DatasetConfig
from pal.config.embed import EmbedConfig, EncoderConfig
from pal.config.heads import AdaptConfig, EvaluateConfig, SweepConfig, TrainConfig
from pal.errors import ConfigError


class ServeConfig(Component):
    """Rewards over HTTP."""

    host: str = "127.0.0.1"
    """Address to listen on; any but loopback asks every caller for a bearer token."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port; 0 takes a free one."""
    max_batch: PositiveInt = 64
    """Rows that the model scores at once, of one request or of several."""
    max_wait_ms: Annotated[float, Field(ge=0.0)] = 2.0
    """How long an incomplete batch waits for further requests."""
    queue: PositiveInt = 1024
    """Rows that may wait; requests beyond are answered with 429."""
    max_body_bytes: PositiveInt = 8 << 20
    """Largest request; larger ones are answered with 413."""
    store: Path | None = None
    """SQLite file of users adapted at runtime; null: users.sqlite in the working directory."""


class PathsConfig(Component):
    """Folders, relative to the working directory."""

    data: Path = Path("data")
    cache: Path = Path("cache")
    runs: Path = Path("runs")
    sweeps: Path = Path("sweeps")
    exports: Path = Path("exports")


class Config(Component):
    """pipeline.yaml."""

    dataset: str = "demo"
    """Default of --dataset."""
    encoder: str = "minilm"
    """Default of --encoder."""
    seed: Count = 0
    """Default of --seed: initial weights and order of batches."""
    paths: PathsConfig = PathsConfig()
    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}))
    embed: EmbedConfig = Field(default_factory=lambda: EmbedConfig.model_validate({}))
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = Field(default_factory=lambda: SweepConfig.model_validate({}))
    adapt: AdaptConfig = AdaptConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()

    def dataset_config(self) -> DatasetConfig:
        """Return the settings of the chosen dataset."""
        if self.dataset not in self.data.datasets:
            raise ConfigError(unknown("dataset", self.dataset, sorted(self.data.datasets)))
        return self.data.datasets[self.dataset]

    def encoder_config(self) -> EncoderConfig:
        """Return the settings of the chosen encoder."""
        if self.encoder not in self.embed.encoders:
            raise ConfigError(unknown("encoder", self.encoder, sorted(self.embed.encoders)))
        return self.embed.encoders[self.encoder]
