"""One row of any supported format -> one canonical row of its task's family.

`parse_row(row, family, columns, system)` parses a row; `format_of(row)` names its format.
"""

from rayswift.data.canonical_rows import (
    CausalRow,
    ClassificationRow,
    Conversation,
    EmbeddingRow,
    KtoRow,
    Label,
    Message,
    MessageLoss,
    PreferenceRow,
    PromptRow,
    RerankerRow,
)
from rayswift.data.rows.columns import BadRow, Cells, Row
from rayswift.data.rows.formats import format_of
from rayswift.data.rows.media import is_read
from rayswift.data.rows.pairs import kto_remarks
from rayswift.data.rows.parse import parse_row
from rayswift.data.rows.remarks import absent_names, media_marks, unused_columns
from rayswift.data.rows.texts import label_in

__all__ = [
    "BadRow",
    "CausalRow",
    "Cells",
    "ClassificationRow",
    "Conversation",
    "EmbeddingRow",
    "KtoRow",
    "Label",
    "Message",
    "MessageLoss",
    "PreferenceRow",
    "PromptRow",
    "RerankerRow",
    "Row",
    "absent_names",
    "format_of",
    "is_read",
    "kto_remarks",
    "label_in",
    "media_marks",
    "parse_row",
    "unused_columns",
]
