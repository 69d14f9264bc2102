"""Task sources: which task next?"""

from agentrl.tasks.contract import TaskSource
from agentrl.tasks.read import read_tasks
from agentrl.tasks.uniform import Uniform

__all__ = ["TaskSource", "Uniform", "read_tasks"]
