"""pipeline.yaml as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from pal.config.audit import AuditConfig
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
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be asked, for a proxy in front of it; without a token,
    loopback and `host` are always allowed and others never, with one all are if this is empty."""
    max_batch: PositiveInt = 64
    """Most rows that the model scores at once, of one request or of several."""
    max_batch_bytes: PositiveInt = 16_384
    """Most bytes of text that the model reads at once, but for a single row that has more; long
    texts then keep others waiting for a short time only."""
    max_wait_ms: Annotated[float, Field(ge=0.0)] = 2.0
    """How long an incomplete batch waits for further requests."""
    queue: PositiveInt = 1024
    """Rows that may wait; requests beyond are answered with 429."""
    adapt_queue: PositiveInt = 16_384
    """Items of answers that may wait, two for each answer; users beyond are answered with 429."""
    max_body_bytes: PositiveInt = 8 << 20
    """Largest request; larger ones are answered with 413."""
    max_row_bytes: PositiveInt = 256 << 10
    """Longest prompt and response together; a longer one has no reward, but a reason."""
    max_image_bytes: PositiveInt = 4 << 20
    """Largest file of an image; a larger one has no reward, but a reason."""
    head_seconds: PositiveFloat = 10.0
    """How long the head of a request may take to arrive once it has begun."""
    body_seconds: PositiveFloat = 60.0
    """How long the body of a request may take to arrive, and a reply to be fetched."""
    idle_seconds: PositiveFloat = 75.0
    """How long a connection may stay open without a request; longer than clients keep theirs."""
    drain_seconds: PositiveFloat = 30.0
    """How long accepted requests are worked on after SIGTERM; then they are answered with 503."""
    reward_of_failed: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Reward in /get_reward of rows that cannot be scored; null, the default, is honest, but
    OpenRLHF cannot read it."""
    policy: str | None = None
    """Folder or Hub repository of the policy that OpenRLHF trains, whose tokenizer writes the
    prompts; null: ChatML, Llama 3, Gemma, Mistral and Zephyr are recognised by their marks."""
    questions: Path | None = None
    """What the page at / asks new users: a file of pairs (prompt, first, second) or the folder of a
    prepared dataset; null: pairs of the head's own dataset, if only this machine can ask."""
    store: Path | None = None
    """SQLite file of users adapted at runtime; null: users.sqlite in the working directory."""


class PathsConfig(Component):
    """Folders, relative to the working directory."""

    data: Path = Path("data")
    cache: Path = Path("cache")
    runs: Path = Path("runs")
    sweeps: Path = Path("sweeps")
    audits: Path = Path("audits")
    reports: Path = Path("reports")
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
    audit: AuditConfig = AuditConfig()
    serve: ServeConfig = ServeConfig()

    def dataset_config(self) -> DatasetConfig:
        """Return the settings of the chosen dataset."""
        if self.dataset not in self.data.datasets:
            told = unknown("dataset", self.dataset, sorted(self.data.datasets))
            raise ConfigError(f"{told}; pal init --source FILE describes a file of yours")
        return self.data.datasets[self.dataset]

    def encoder_config(self) -> EncoderConfig:
        """Return the settings of the chosen encoder."""
        if self.encoder not in self.embed.encoders:
            raise ConfigError(unknown("encoder", self.encoder, sorted(self.embed.encoders)))
        return self.embed.encoders[self.encoder]
