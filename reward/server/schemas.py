"""What requests and replies are.

Rows are checked one by one where they are scored, so that an odd one costs only itself; here only
what concerns a request as a whole is.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, WithJsonSchema

MOST_ANSWERS = 512
CHAT = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
    "description": "a text or chat messages",
}
USER = {
    "anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "object"}, {"type": "null"}],
    "description": 'an id, a mixture such as {"0": 0.3, "1": 0.7}, or nobody',
}
Chat = Annotated[Any, WithJsonSchema(CHAT)]
Chats = Annotated[list[Any], WithJsonSchema({"type": "array", "items": CHAT})]
Texts = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "string"}})]
Labels = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {}})]
UserOrUsers = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "array", "items": USER}, *USER["anyOf"]]})
]


class Body(BaseModel):
    """What is said of a field below it stands in the document of the routes, too."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def example(**value: Any) -> ConfigDict:
    """Return the settings of a request that is shown by this example."""
    return ConfigDict(json_schema_extra={"example": value})


class OpenRlhfRequest(Body):
    """OpenRLHF sends ``query``: the decoded prompt and response, with all special tokens;
    ``prompts``: the prompts as its dataset wrote them; ``labels``: the column of
    ``--data.label_key``, a user's id or JSON with ``user_id``."""

    model_config = example(
        query=["What should I cook tonight? A soup of lentils."],
        prompts=["What should I cook tonight?"],
        labels=["seen-00001"],
    )
    query: Texts
    prompts: Texts = []
    labels: Labels = []


class OpenRlhfReply(Body):
    """A row that cannot be scored has null, or ``serve.reward_of_failed``, and a reason."""

    rewards: list[float | None]
    scores: list[float | None]
    """rewards as numbers between 0 and 1, by the logistic function"""
    extra_logs: dict[str, list[float]]
    """for the trainer's logs: ``pal_user_known``, and ``pal_prompt_cut`` where the client has cut
    the beginning of a prompt; the reward is for the whole one"""
    errors: dict[int, str]
    """the reason by row"""


class ScoreRequest(Body):
    """``prompts``: null where there is none. ``users``: one for each response, or one for all.

    A model of images takes their files' bytes in base64 for ``responses``.
    """

    model_config = example(
        prompts=["What should I cook tonight?"], responses=["A soup."], users=["seen-00001"]
    )
    prompts: Chats
    responses: Chats
    users: UserOrUsers = None


class ScoreReply(Body):
    """A row that cannot be scored has null and a reason."""

    rewards: list[float | None]
    errors: dict[int, str]
    """the reason by row"""
    unknown_users: int
    """rows whose user is not known, scored as the population"""


class CompareRequest(Body):
    """Pairs of responses (files of images in base64) to one prompt each; ``users`` as in
    /v1/score."""

    model_config = example(
        prompts=["What should I cook tonight?"],
        first=["A soup of lentils."],
        second=["Nothing. Order something."],
        users=["seen-00001"],
    )
    prompts: Chats
    first: Chats
    second: Chats
    users: UserOrUsers = None


class CompareReply(Body):
    p: list[float]
    """P(first preferred): of strangers the average over all users of the training, of users who
    were adapted over who they may be by their answers"""
    unknown_users: int


class AnswerBody(Body):
    """One comparison by the user; images in base64."""

    prompt: Chat = None
    chosen: Chat
    rejected: Chat
    label: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """P(chosen preferred); 0.5 is a tie"""


class AdaptRequest(Body):
    """All answers of a user; they replace what was known of the user."""

    model_config = example(
        answers=[
            {
                "prompt": "What should I cook tonight?",
                "chosen": "A soup of lentils.",
                "rejected": "Nothing. Order something.",
            }
        ]
    )
    answers: Annotated[list[AnswerBody], Field(min_length=1, max_length=MOST_ANSWERS), FailFast()]


class AdaptReply(Body):
    user: str
    answers: int
    weights: list[float]
    """the user's vector: of a PAL head the weight of each prototype"""


class QuestionBody(Body):
    """A pair that somebody may be asked about; images in base64."""

    prompt: Chat = None
    first: Chat
    second: Chat
    label: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """P(first preferred) by the user's answer, 0.5 for a tie; null while it is not answered"""


class QuestionsReply(Body):
    questions: list[QuestionBody]


class InterviewRequest(Body):
    """All questions of an interview, those that are answered with their label."""

    model_config = example(
        questions=[
            {
                "prompt": "What should I cook tonight?",
                "first": "A soup of lentils.",
                "second": "Nothing. Order something.",
                "label": 1.0,
            },
            {"prompt": "What is 1 + 1?", "first": "2", "second": "It depends."},
        ]
    )
    questions: Annotated[
        list[QuestionBody], Field(min_length=1, max_length=MOST_ANSWERS), FailFast()
    ]


class InterviewReply(Body):
    next: int | None
    """number of the question whose answer would tell most of the user; null: all are answered"""
    p: list[float]
    """P(first preferred) of each question by the answers so far"""
    p_before: list[float]
    """the same before any answer"""
    weights: list[float]
    """the user's vector: of a PAL head the weight of each prototype"""


class ModelReply(Body):
    """What a model is."""

    run: str
    dataset: str
    head: str
    k: int
    """prototypes"""
    encoder: str
    revision: str
    view: str
    """whether responses were read alone or behind their prompts"""
    modality: str
    """text or image"""
    untrained: bool
    """whether the encoder has random weights, so that the numbers mean nothing"""
    choice: str
    """whose reward is given when nobody is named"""
    users: int
    """people that the head was trained on; none in an export of one user"""
    adapted: int
    """people who were adapted here"""
    names: list[str]
    """of the first of those people, where only this machine can ask"""
    mixes: int
    """prototypes that a user may be a mixture of; 0: none"""
    adapts: bool
    """whether somebody can be adapted"""
    version: str
