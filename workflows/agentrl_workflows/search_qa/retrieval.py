"""The search tool of each world: one name, one schema, other documents.

The workflow gives an agent the tool of its task's world: `team["searcher"].run(task.text, tools=[search_of(task.world)])`.
"""

from __future__ import annotations

from functools import lru_cache

from agentrl_tools.search import Search
from agentrl_workflows.search_qa.atlas import world


@lru_cache(maxsize=256)
def search_of(number: int) -> Search:
    """The tool over the documents of world `number`, best document only; made at its first use, then kept."""
    return Search(world(number).documents(), top_k=1)
