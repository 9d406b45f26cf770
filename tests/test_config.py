"""Settings: layers, strictness, and sentences that name the key the user typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal.config import flatten, load, load_overrides
from pal.errors import ConfigError


def test_later_layers_win_and_are_remembered() -> None:
    Path("pipeline.yaml").write_text("train: {k: 3, epochs: 7}\n")
    settings = load(None, ["train.epochs=9"], {"train.head": "pal-a", "seed": None})
    assert (settings.config.train.k, settings.config.train.epochs, settings.config.train.head) == (
        3,
        9,
        "pal-a",
    )
    assert settings.origins["train.k"] == "pipeline.yaml"
    assert settings.origins["train.epochs"] == "--set train.epochs=9"
    assert settings.origins["train.head"] == "option"
    assert settings.origins["seed"] == "built-in"


def test_a_file_adds_an_encoder_of_its_own() -> None:
    Path("pipeline.yaml").write_text("embed: {mine: {model: some/model, pooling: last}}\n")
    config = load(options={"encoder": "mine"}).config
    assert config.encoder_config().pooling == "last"
    assert "minilm" in config.embed.encoders


def test_numbers_in_scientific_notation_are_numbers() -> None:
    assert load(None, ["train.lr=1e-3"]).config.train.lr == 1e-3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.kk=2"], ["unknown key of train 'kk'", "valid:", "batch_size"]),
        (["trian.k=2"], ["unknown key of pipeline.yaml 'trian'", "did you mean 'train'"]),
        (["train.k=none"], ["train.k = 'none'", "integer", "--set train.k=none"]),
        (["train.k=0"], ["train.k = 0", "greater than 0"]),
        (["data.persona.noise=0.7"], ["data.persona.noise = 0.7", "less than 0.5"]),
        (["data.persnoa.noise=0.1"], ["unknown key of data 'persnoa'", "did you mean 'persona'"]),
        (["embed.token_bugdet=5"], ["embed.token_bugdet is neither a setting", "token_budget"]),
        (["embed.minilm.poling=cls"], ["unknown key of embed.minilm 'poling'", "pooling"]),
        (["embed.minilm.pooling=max"], ["embed.minilm.pooling = 'max'", "'mean', 'cls' or 'last'"]),
        (["embed.token_budget=x"], ["embed.token_budget = 'x'"]),
        (["train.k"], ["--set takes dotted.key=value", "'train.k'"]),
        (["data.demo.salt=12345678901234567"], ["data.demo.salt"]),
        (["train=3"], ["train = 3", "several settings; set one of them: train.head, train.k"]),
        (["sweep=3"], ["sweep = 3", "set one of them: sweep.sampler"]),
        (["data.demo=3"], ["data.demo = 3", "set one of them: data.demo.kind"]),
        (["sweep.k=[]"], ["sweep.k = [] is not valid: the list is empty", "--set sweep.k=[]"]),
        (["seed=9223372036854775808"], ["seed = 9223372036854775808 is not valid"]),
        (["train.lr=.inf"], ["train.lr = inf is not valid"]),
        (["sweep.lr=[.nan]"], ["sweep.lr = nan is not valid"]),
        (["sweep.encoder=[]"], ["sweep.encoder = [] is not valid: the list is empty"]),
        (["adapt.shots=[]"], ["adapt.shots = [] is not valid: the list is empty"]),
        (["sweep.k=1,2"], ["sweep.k = '1,2'", "it takes a list in brackets, such as [1, 2]"]),
        (["adapt.shots={a: 1}"], ["adapt.shots = ", "a list in brackets"]),
        (["sweep.k=[2, two]"], ["sweep.k = 'two'", "valid integer"]),
        (["sweep.k=[null]"], ["sweep.k = None", "valid integer"]),
        (["sweep.head=[[pal-a]]"], ["sweep.head = ['pal-a']", "valid string"]),
    ],
)
def test_a_bad_setting_is_one_sentence(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, overrides)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_single_value_where_a_list_is_needed_is_a_list_of_one() -> None:
    one = ["sweep.k=4", "sweep.head=pal-a", "adapt.shots=5", "data.persona.personas=a"]
    config = load(None, one).config
    assert (config.sweep.axes["k"], config.sweep.axes["head"]) == ((4,), ("pal-a",))
    assert config.adapt.shots == (5,)
    assert config.model_dump()["data"]["persona"]["personas"] == ("a",)


def test_unreadable_files_are_sentences() -> None:
    with pytest.raises(ConfigError, match="cannot read nowhere.yaml"):
        load(Path("nowhere.yaml"))
    Path("pipeline.yaml").write_text("train: {k: 2\n")
    with pytest.raises(ConfigError, match="not valid YAML at line"):
        load()
    Path("pipeline.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold keys and values"):
        load()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "personas"}, "did you mean 'persona'"),
        ({"encoder": "minlm"}, "did you mean 'minilm'"),
    ],
)
def test_unknown_names_list_the_known_ones(options: dict[str, str], words: str) -> None:
    config = load(options=options).config
    choose = config.dataset_config if "dataset" in options else config.encoder_config
    with pytest.raises(ConfigError, match=words):
        choose()


def test_every_setting_of_the_contract_is_there() -> None:
    keys = set(flatten(load().config))
    for key in (
        "dataset", "encoder", "seed", "data.persona.source", "data.persona.limit",
        "data.persona.salt", "data.persona.personas", "data.persona.groups", "data.persona.users",
        "data.persona.unseen_users", "data.persona.pairs_per_user",
        "data.persona.test_pairs_per_user", "data.persona.noise", "data.simulated.dim",
        "data.simulated.regime", "data.simulated.map", "embed.minilm.model",
        "embed.minilm.revision", "embed.minilm.layer", "embed.minilm.pooling",
        "embed.minilm.max_length", "embed.minilm.compute_dtype", "embed.minilm.store_dtype",
        "embed.token_budget", "embed.rows_per_shard", "embed.max_error_rate", "train.head",
        "train.k", "train.latent_dim", "train.mlp", "train.weights", "train.loss", "train.epochs",
        "train.batch_size", "train.lr", "train.user_lr", "train.prototype_lr", "train.weight_decay",
        "train.device", "paths.data", "paths.cache", "paths.runs", "paths.sweeps", "paths.exports",
    ):  # fmt: skip
        assert key in keys


def test_no_shipped_encoder_runs_code_of_its_repository() -> None:
    assert not any(encoder.trust_remote_code for encoder in load().config.embed.encoders.values())


def test_a_preset_gives_way_to_what_was_typed_and_not_to_repeated_defaults() -> None:
    Path("pipeline.yaml").write_text("train: {lr: 7.0e-4, epochs: 20}\n")  # 20 is the default
    settings = load(None, ["train.user_lr=0.25"], {"train.head": "pal-b-t2i"})
    train = settings.config.train
    assert (train.lr, train.user_lr, train.epochs, train.head) == (7e-4, 0.25, 50, "pal-b")
    assert settings.origins["train.epochs"] == "preset pal-b-t2i"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x, x]\nb: *a\n", "not valid YAML"),
        ("\ufefftrain: {k: 3}\n", ""),
    ],
)
def test_yaml_has_no_aliases_and_may_have_a_byte_order_mark(text: str, words: str) -> None:
    Path("pipeline.yaml").write_text(text, encoding="utf-8")
    if not words:
        assert load().config.train.k == 3
        return
    with pytest.raises(ConfigError, match=words):
        load()


def test_other_encodings_and_broken_values_are_sentences() -> None:
    with pytest.raises(ConfigError, match="--set train.k=\\[1: the value is not valid YAML"):
        load(None, ["train.k=[1"])
    Path("pipeline.yaml").write_bytes("train: {k: 3} # ü".encode("utf-16"))
    with pytest.raises(ConfigError, match="is not UTF-8; save it as UTF-8"):
        load()


def test_the_file_at_the_root_is_the_built_in_reference_run() -> None:
    root = Path(__file__).resolve().parents[1]
    assert not (root / "pipeline.yaml").is_symlink()
    assert (root / "pipeline.yaml").read_text() == (root / "pal" / "pipeline.yaml").read_text()


def test_the_default_name_of_a_run_tells_settings_apart() -> None:
    from pal.pipeline import default_run

    usual = default_run(load(options={"dataset": "persona"}).config)
    assert usual == "persona-minilm-pal-b-k2-s0"
    names = [usual]
    for override in ("train.lr=1e-3", "data.persona.groups=4", "embed.minilm.pooling=cls"):
        names.append(default_run(load(None, [override], {"dataset": "persona"}).config))
    assert len(set(names)) == 4
    assert all(name.startswith(f"{usual}-") for name in names[1:])
    elsewhere = load(None, ["train.device=cpu", "data.persona.source=x"], {"dataset": "persona"})
    assert default_run(elsewhere.config) == usual
    without = [load(None, [f"train.k={k}"], {"train.head": "bt-linear"}).config for k in (2, 5)]
    assert {default_run(one) for one in without} == {"demo-minilm-bt-linear-s0"}
    assert default_run(load(None, (), {"train.head": "lore"}).config) == "demo-minilm-lore-k2-s0"


@pytest.mark.parametrize("axis", [{"train.k": 3}, {"embed.minilm.layer": -2}])
def test_an_axis_of_a_sweep_sets_nothing_but_itself(axis: dict[str, int]) -> None:
    """Where nobody set it, ``max_length`` is what the model reads; a copied default is not."""
    config = load(None, (), {}).config
    changed = load_overrides(config, axis)
    before, after = config.encoder_config(), changed.encoder_config()
    named = {key.removeprefix("embed.minilm.") for key in axis if key.startswith("embed.minilm.")}
    assert after.model_fields_set == before.model_fields_set | named
    assert flatten(changed) == flatten(config) | axis
