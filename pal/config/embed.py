"""Settings of stage one."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from pal.config.base import Component, Fraction


class EncoderConfig(Component):
    """A frozen model and how an item becomes a feature under it."""

    kind: Literal["hf-text", "hf-clip", "hf-image", "open-clip", "identity"] = "hf-text"
    """Which loader reads the model: a transformers text model, a transformers model with image and
    text towers, one of images alone, an OpenCLIP model; ``identity`` stores features that the
    dataset brings."""
    model: str | None = None
    """Hub repository, local folder, OpenCLIP architecture, or ``random:FAMILY`` for seeded random
    weights."""
    gguf_file: str | None = None
    """Name of a GGUF file in the model's folder, read in the place of safetensors."""
    pretrained: str | None = None
    """OpenCLIP: tag of the weights, or a local file; ``random`` for seeded random weights of the
    real shape."""
    revision: str = "main"
    """Branch, tag or commit on the Hub; the commit it resolves to is recorded."""
    layer: Annotated[int, Field(le=-1)] = -1
    """-1: the last hidden state, which is what the model's own head reads; -2: the output of the
    last block but one; and so on downwards. Image and text towers: -1 the projected feature, -2 the
    one before the projection."""
    norm: Literal["pre", "post"] | None = None
    """Layer -1 before or after the final norm; null: after it, and lower layers are always before
    it."""
    template: str | None = None
    """How an item with context becomes one text: ``chat``, the tokenizer's own chat template; a
    pattern with {context} and {text}; null: both with an empty line between them."""
    instruction: str | None = None
    """Words put before every text, as embedding models ask for; null: the default prompt of the
    model's sentence-transformers files, if they have one; an empty text: none."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """Over the real tokens: their mean, the first, or the last; auto: as the model's
    sentence-transformers files say, else the mean. Images: cls or the mean of the patches; auto:
    the model's own pooled output, else cls."""
    max_length: PositiveInt = 512
    """Tokens per item; longer texts are cut and counted. Of an item with context the context is cut
    first, from its start. Where it is not set, fewer if the model's files say so."""
    truncation_side: Literal["left", "right"] = "right"
    """The end at which an item without context is cut."""
    padding_side: Literal["left", "right"] = "right"
    """Where padding stands in a batch; refused where the model then gives other features."""
    normalize: bool | None = None
    """Scale each feature to unit L2 norm; null: as the model's sentence-transformers files say."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How transformers computes attention; auto: sdpa where the model supports it, else eager."""
    images: Literal["as-seen", "as-library"] = "as-seen"
    """How images are decoded. as-seen: upright, on white, in sRGB, 16 bits and floats scaled to 8;
    as-library: by Pillow's conversion to RGB alone, as OpenCLIP and most published features."""
    compute_dtype: Literal["auto", "float32", "mixed", "bfloat16", "float16"] = "float32"
    """Dtype of weights and activations. mixed: the matrix products of a text model in bfloat16,
    everything between them float32. auto: that of a cache which is there; else mixed where the
    machine is fast at it and the features of a text model keep a cosine of 0.9999; else float32."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Quantise the weights as they are loaded, by bitsandbytes."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Spread one model over all devices of this machine, by transformers' own map; null: every
    device has a whole model."""
    store_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Dtype in the cache."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run; it is hashed with the other files."""
    code_revision: str | None = None
    """Branch, tag or commit of another repository that such code comes from; null: main."""
    weights_sha256: str | None = None
    """Expected SHA-256 of the weights file; anything else is refused."""
    offline_package: str | None = None
    """Installed Python package whose folder ``model`` holds the same weights, for machines without
    the Hub."""

    @model_validator(mode="after")
    def _require_one_arithmetic(self) -> Self:
        """Raise ValidationError where ``mixed`` has no meaning."""
        if self.compute_dtype == "mixed" and not self.can_be_mixed:
            raise ValueError(
                "compute_dtype: mixed is for text models that are neither quantised nor spread by "
                "device_map; set compute_dtype to float32 or bfloat16"
            )
        return self

    @property
    def can_be_mixed(self) -> bool:
        """Whether ``compute_dtype: mixed`` is known for it."""
        return self.kind == "hf-text" and self.quantization is None and self.device_map is None

    @property
    def is_random(self) -> bool:
        """Whether its weights are random."""
        return (self.model or "").startswith("random:") or self.pretrained == "random"


class EmbedConfig(Component):
    """Stage one. Every other key names an encoder."""

    model_config = ConfigDict(
        extra="allow", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True
    )
    __pydantic_extra__: dict[str, EncoderConfig]

    token_budget: PositiveInt | Literal["auto"] = "auto"
    """Padded tokens per batch; auto: 1,024 on a CPU, 65,536 on a GPU. A batch that finds no memory
    is halved."""
    rows_per_shard: PositiveInt | None = None
    """Items per shard, the unit of resume; null: a sixteenth of all, 512 to 8,192."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    max_error_rate: Fraction = 0.01
    """Share of failed items above which stage one stops."""
    layers: tuple[Annotated[int, Field(le=-1)], ...] = ()
    """Layers to take in one pass, each into its own cache; empty: the encoder's own ``layer``."""
    workers: PositiveInt | None = None
    """Threads that decode and pad ahead of the model; null: one per core, at most 16."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, faster on long runs."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """What encodes the shards: processes here, one per visible GPU; actors of a Ray cluster; tasks
    of a SLURM array."""
    actors: PositiveInt | None = None
    """Workers of an executor; null: one per visible GPU of this machine or of the Ray cluster, else
    one."""
    ray_address: str | None = None
    """Address of a running Ray cluster; null: that of RAY_ADDRESS, else one is started here."""

    @property
    def encoders(self) -> dict[str, EncoderConfig]:
        return self.__pydantic_extra__
