"""Task sources: which task next?"""

from agentrl.tasks.contract import TaskSource
from agentrl.tasks.read import read_tasks
from agentrl.tasks.stored import from_store
from agentrl.tasks.uniform import Uniform

__all__ = ["TaskSource", "Uniform", "from_store", "read_tasks"]
