"""The tables of a study.

A *question* is asked about *items*: a pair of images, or one image of a data set. Dealing makes
*tasks* of them: one item for one annotator at a position. An *answer* belongs to a task; it is live
until it is undone. Nothing is ever deleted that an annotator has answered.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

study = Table(
    "study",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(20), nullable=False),  # compare, or a stage of curation
    Column("settings", JSON, nullable=False),
    Column("secret", String(64), nullable=False),  # of CSRF tokens
    Column("ready", Boolean, nullable=False),  # whether all images and items are there
)

models = Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("label", Text, nullable=False),
)

prompts = Table(
    "prompts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("text", Text, nullable=False),
    Column("columns", JSON, nullable=False),
)

images = Table(
    "images",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("file", String(40), nullable=False, unique=True),  # a random name
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("model", ForeignKey("models.id")),
    Column("prompt", ForeignKey("prompts.id")),
    Column("key", Text),  # of a data set's record
    Column("captions", JSON(none_as_null=True)),
    UniqueConstraint("model", "prompt"),
)

items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("question", String(20), nullable=False, index=True),
    Column("role", String(10), nullable=False),  # study, gold or training
    Column("votes", Integer, nullable=False),  # that it needs
    Column("prompt", ForeignKey("prompts.id")),
    Column("first", ForeignKey("images.id"), nullable=False),
    Column("second", ForeignKey("images.id")),  # of a pair
    Column(
        "expected", JSON(none_as_null=True)
    ),  # of gold and training: the answers, sides not swapped, that are right
)

annotators = Table(
    "annotators",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("token", String(64), nullable=False, unique=True),  # its digest
    Column("stopped", Boolean, nullable=False, default=False),  # gets no more tasks
    Column("left_out", Boolean, nullable=False, default=False),  # answers do not count
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("public", String(32), nullable=False, unique=True),  # its random name on the web
    Column("annotator", ForeignKey("annotators.id"), nullable=False),
    Column("item", ForeignKey("items.id"), nullable=False, index=True),
    Column("block", Integer, nullable=False),  # the number of the question
    Column("position", Integer, nullable=False),
    Column("swapped", Boolean, nullable=False),  # whether the second image is A
    Column("repeated", Boolean, nullable=False),  # an item that the annotator has had before
    Index("in_order", "annotator", "block", "position"),
)

answers = Table(
    "answers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", ForeignKey("tasks.id"), nullable=False),
    Column("live", Integer),  # 1, or null once it is undone: at most one answer of a task is live
    Column("key", String(64), nullable=False),  # the same for every attempt to send it
    Column("answer", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("given", DateTime(timezone=True), nullable=False),
    UniqueConstraint("task", "live"),
    UniqueConstraint("task", "key"),
)
