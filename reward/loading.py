"""An exported folder or a run, opened: the head, its record and its encoder, checked.

An export cannot give itself a permission. Code from an encoder's repository runs only if the caller
says so, whatever the export's settings say, and its paths are only places to look for weights.
Nothing is written into it, and hashes that came with it are not believed.
"""

from __future__ import annotations

from pathlib import Path

import pal
from pal.config import EmbedConfig, EncoderConfig
from pal.dataset import DatasetCard
from pal.embed.arithmetic import as_made
from pal.embed.encoder import locate
from pal.errors import EvaluationError, RewardError, shown
from pal.hub import fetch
from pal.names import did_you_mean_folder
from pal.probe import device_of
from pal.records import JsonObject
from pal.reward.export_record import Contents, EncoderReference, ExportRecord, Modality
from pal.reward.live import LiveEncoder, changed_settings
from pal.train.adapt.prior import DEFAULT_STRENGTH, Priors, make_prior
from pal.train.run_record import RunRecord, TrainedHead


def folder_of(path_or_repo: str | Path, revision: str | None) -> Path:
    """Return the folder of an export, fetched from the Hub if it is not here."""
    folder = Path(path_or_repo)
    return folder if folder.is_dir() else download(str(path_or_repo), revision)


def download(repo: str, revision: str | None) -> Path:
    """Fetch an export from the Hub; raises RewardError where there is none."""
    try:
        return fetch(repo, revision)
    except Exception as error:
        raise RewardError(
            f"{repo} is neither a folder nor a Hub repository that can be fetched "
            f"({type(error).__name__}){did_you_mean_folder(Path(repo), ExportRecord.file)} check "
            f"the name and the network"
        ) from error


def _device(name: str) -> str:
    """Return the device of an encoder; raises RewardError for one that this machine has not."""
    return device_of(name, "device", RewardError, all_of_torch=True)


def load_encoder(
    folder: Path,
    record: ExportRecord,
    device: str = "auto",
    encoder: str | Path | None = None,
    trust_remote_code: bool = False,
) -> LiveEncoder:
    """Load the encoder of an export, from the folder ``encoder`` if one is given.

    Raises RewardError if it is not that of the training.
    """
    settings, spec = encoder_settings(folder, record, encoder, trust_remote_code)
    if "code" in spec and not settings.trust_remote_code:
        raise RewardError(
            f"encoder {record.encoder.name} needs code from {shown(settings.model)}, which runs "
            "only if you allow it: read it, then pass --trust-remote-code, or "
            "trust_remote_code=True"
        )
    return LiveEncoder.locate(record.encoder.name, settings, None, spec, _device(device))


def encoder_settings(
    folder: Path, record: ExportRecord, encoder: str | Path | None, trust_remote_code: bool
) -> tuple[EncoderConfig, JsonObject]:
    """Return with which settings an export's encoder is loaded, and which one it must be.

    A merged encoder is one of transformers' own classes, so no code of its own is needed.
    """
    reference = record.encoder
    trusted = reference.settings.trust_remote_code and trust_remote_code and not record.merged
    spec = reference.spec
    settings = as_made(reference.settings, spec)
    settings = settings.model_copy(update={"trust_remote_code": trusted})
    if record.merged:
        gone = ("offline_package", "weights_sha256", "gguf_file", "quantization", "device_map")
        own = {"model": str(folder), **dict.fromkeys(gone)}
        settings, spec = settings.model_copy(update=own), record.merged_spec or {}
    if encoder is not None:
        settings = settings.model_copy(update={"model": str(encoder)})
    return settings, spec


def open_run(
    trained: TrainedHead,
    encoder: EncoderConfig,
    digests: Path,
    modality: Modality,
    device: str = "cpu",
) -> tuple[Contents, LiveEncoder]:
    """Put a trained head and its encoder together, for the population until somebody is named.

    ``digests`` remembers hashes of weight files. Raises EvaluationError if the encoder has other
    settings now.
    """
    metadata, head = trained.metadata, trained.head
    settings = _as_trained(encoder, metadata)
    source = locate(metadata.encoder, settings, digests)
    if changed_settings(source.spec, metadata.encoder_spec):
        raise EvaluationError(
            f"run {metadata.run} was trained under other settings of encoder {metadata.encoder}; "
            "restore them"
        )
    revision = source.revision if len(source.revision) == 40 else settings.revision
    record = ExportRecord(
        run=metadata.run,
        dataset=metadata.dataset,
        view=metadata.view,
        item_text=metadata.item_text,
        modality=modality,
        encoder=EncoderReference(
            name=metadata.encoder,
            revision=source.revision,
            spec=metadata.encoder_spec,
            settings=source.config.model_copy(
                update={
                    "revision": revision,
                    "code_revision": source.code_commit or settings.code_revision,
                }
            ),
        ),
        untrained=metadata.untrained,
        dim=metadata.dim,
        train=metadata.train,
        split_digest=metadata.split_digest,
        pairs_digest=metadata.pairs_digest,
        cache_fingerprint=metadata.cache_fingerprint,
        users=trained.users,
        pal_version=pal.__version__,
        files=metadata.files,
    )
    has_users = head.users.logits.shape[1] > 0
    prior = Priors.always(make_prior(head, DEFAULT_STRENGTH)) if has_users else None
    contents = Contents(record, head, head.users.population().detach(), prior)
    return contents, LiveEncoder(source, _device(device))


def encoder_of_run(embed: EmbedConfig, metadata: RunRecord) -> EncoderConfig:
    """Return the settings of a run's encoder; raises EvaluationError where there are none."""
    encoder = embed.encoders.get(metadata.encoder)
    if encoder is None:
        raise EvaluationError(
            f"run {metadata.run} needs encoder {metadata.encoder}; put it under embed:"
        )
    return encoder


def modality_of(dataset: Path, encoder: EncoderConfig) -> Modality:
    """Return what a prepared dataset's responses are, for encoders that read texts and images."""
    if encoder.kind == "hf-text":
        return "text"
    if encoder.kind == "identity":
        raise RewardError(
            f"dataset {dataset.name} brings features and no texts or images, so there is no "
            "encoder to score live with; use pal evaluate"
        )
    return "image" if DatasetCard.read(dataset).counts.items_by_modality.get("image") else "text"


def _as_trained(settings: EncoderConfig, metadata: RunRecord) -> EncoderConfig:
    """Take the layer of the training, which embed.layers may have chosen, and its arithmetic."""
    layer = metadata.encoder_spec.get("layer")
    settings = as_made(settings, metadata.encoder_spec)
    return settings if layer is None else settings.model_copy(update={"layer": layer})
