"""pal export, score, serve and rewardbench: a trained head as somebody else's reward."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pal.cli import complete
from pal.cli.app import File, Json, Set, app, progress_bar, say, settings_of, show

if TYPE_CHECKING:
    from pal.reward.model import RewardModel

Model = Annotated[
    str, typer.Option("--model", help="Folder of an export, or a repository on the Hub.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let code of the encoder's repository run, if the export says so.",
    ),
]
EncoderFolder = Annotated[
    Path | None,
    typer.Option(
        "--encoder-folder", help="The encoder's files, where the export does not find them."
    ),
]


def _load(model: str, device: str, encoder: Path | None, trust_remote_code: bool) -> RewardModel:
    from pal.reward.model import RewardModel

    return RewardModel.from_pretrained(
        model, device=device, encoder=encoder, trust_remote_code=trust_remote_code
    )


@app.command()
def export(
    run: Annotated[str, typer.Option("--run", help="Name of a run.", autocompletion=complete.runs)],
    user: Annotated[
        str | None,
        typer.Option("--user", help="One user's reward; adapted from the own answers if unseen."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="A fixed mixture of prototypes, e.g. 0.3,0.7; sums to one."),
    ] = None,
    population: Annotated[
        bool, typer.Option("--population", help="The mean user's reward; the default.")
    ] = False,
    prototype: Annotated[
        int | None, typer.Option("--prototype", help="One prototype's reward, from 0.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Folder under exports/; default: run and choice.")
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Fold a linear head into the encoder, for transformers without pal."
        ),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub", help="Upload to this repository too, which is made if missing."
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push-to-hub: not private.")
    ] = False,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """A run as a reward model for other tools: exports/<name>/."""
    from pal import pipeline
    from pal.reward.export import one_choice, push

    choice = one_choice(user, weights, population, prototype)
    made = pipeline.export(settings_of(config, set_).config, run, choice, name, merge)
    hub = None if push_to_hub is None else push(Path(made.dir), push_to_hub, private=not public)
    told = f"golden scores reproduced to {made.golden_max_abs_diff:.2g}"
    show(
        {**made.model_dump(mode="json"), **({} if hub is None else {"hub": hub})},
        as_json,
        lambda: f"{made.dir}: {choice.suffix} of run {run}, {told}" + (f"; {hub}" if hub else ""),
    )


@app.command()
def score(
    model: Model,
    input: Annotated[
        Path,
        typer.Option(
            "--input",
            help="JSONL, CSV or Parquet: prompt, response or image, user_id; for --compare prompt, "
            "first, second, user_id.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            help="The same rows with reward or reward_error, after --compare p or p_error; the "
            "ending says which kind of file.",
        ),
    ],
    best_of: Annotated[
        int | None,
        typer.Option("--best-of", min=1, help="Keep the best of the first N per prompt and user."),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Write prompt, chosen, rejected: best and worst, for DPO."),
    ] = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="How probably the user prefers the first of two: column p."),
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            help="Answers of new people, who are learned first: prompt, chosen, rejected, user_id; "
            "or first, second, label.",
        ),
    ] = None,
    device: Device = "auto",
    encoder_folder: EncoderFolder = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Score a file, streaming; a killed run goes on where it was. A row that cannot be scored has a
    null reward and a reason; exits with 1 only if that are all."""
    from pal.errors import PalWarning, RewardError
    from pal.reward.score_file import require_files, score_file

    require_files(input, output)  # before the model is loaded, which may take minutes
    loaded = _load(model, device, encoder_folder, trust_remote_code)
    with progress_bar(None, "rows") as progress:
        result = score_file(
            loaded,
            input,
            output,
            best_of=best_of,
            pairs=pairs,
            compare=compare,
            answers=answers,
            progress=progress,
        )
    what = "probability" if compare else "reward"
    show(
        result,
        as_json,
        lambda: (
            f"{output}: {result.rows:,} rows in {result.seconds:.1f} s, "
            f"{result.users_known} users known and {result.users_unknown} not"
            + (f"; {result.rows_failed:,} have no {what}" if result.rows_failed else "")
        ),
    )
    if result.rows_failed:
        told = f"{result.rows_failed:,} of {result.rows:,} rows of {input} have no {what}"
        told += f"; the first is {result.first_failure}"
        if result.rows_failed == result.rows:
            raise RewardError(f"{told}; correct them, or give another --model")
        warnings.warn(told, PalWarning, stacklevel=1)


@app.command()
def serve(
    model: Model,
    host: Annotated[str | None, typer.Option("--host", help="Address; default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port; default 8000, 0 takes a free one.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="PAL_SERVE_TOKEN",
            help="Bearer token asked for; made up if not on loopback.",
        ),
    ] = None,
    no_token: Annotated[
        bool,
        typer.Option("--no-token", help="Let everybody ask who can reach the address."),
    ] = False,
    device: Device = "auto",
    encoder_folder: EncoderFolder = None,
    trust_remote_code: TrustRemoteCode = False,
    config: File = None,
    set_: Set = None,
) -> None:
    """Rewards over HTTP: OpenRLHF's POST /get_reward, POST /v1/score and few-shot users; a page to
    try them at /, all routes at /docs."""
    settings = settings_of(config, set_, serve__host=host, serve__port=port).config
    from pal.reward.server.serve import run_server

    run_server(
        _load(model, device, encoder_folder, trust_remote_code),
        settings.serve,
        token,
        say,
        is_open=no_token,
        data=settings.paths.data,
    )


@app.command()
def rewardbench(
    model: Model,
    input: Annotated[
        Path, typer.Option("--input", help="RewardBench v1 or v2 as JSONL or Parquet.")
    ],
    user: Annotated[
        str | None, typer.Option("--user", help="Whose reward; default: whoever the export is for.")
    ] = None,
    device: Device = "auto",
    encoder_folder: EncoderFolder = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """RewardBench's scores from its published files, v1 or v2."""
    from pal.reward.rows import read_rows
    from pal.reward.tools.rewardbench import as_text
    from pal.reward.tools.rewardbench import evaluate as evaluate_rewardbench

    rows = list(read_rows(input))  # before the model is loaded, which may take minutes
    loaded = _load(model, device, encoder_folder, trust_remote_code)
    with progress_bar(None, "prompts") as progress:
        result = evaluate_rewardbench(loaded, rows, user, progress)
    show(result, as_json, lambda: as_text(result))
