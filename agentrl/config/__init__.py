"""Settings by name put into an experiment, and an experiment told as JSON. `docs/commands.md` shows both in use."""

from agentrl.config.settings import apply_settings, put_settings, read_plug_in, short_names
from agentrl.config.snapshot import difference, experiment_json

__all__ = ["apply_settings", "difference", "experiment_json", "put_settings", "read_plug_in", "short_names"]
