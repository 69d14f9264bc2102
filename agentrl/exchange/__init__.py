"""Episodes in files that others read: JSON lines, Parquet, Hugging Face datasets. `docs/record.md` has the schema."""

from agentrl.exchange.files import FORMATS, entries_of, export_episodes, read_entries, read_episodes, renamed
from agentrl.exchange.messages import messages_of, with_messages
from agentrl.exchange.row import SCHEMA, Entry
from agentrl.exchange.taking import Imported, import_episodes

__all__ = [
    "FORMATS",
    "SCHEMA",
    "Entry",
    "Imported",
    "entries_of",
    "export_episodes",
    "import_episodes",
    "messages_of",
    "read_entries",
    "read_episodes",
    "renamed",
    "with_messages",
]
