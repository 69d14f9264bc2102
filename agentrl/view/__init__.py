"""Episodes to look at: as a tree or a list in the terminal (`agentrl.view`), or on one page (`agentrl.view.html`)."""

from agentrl.view.listing import render_list
from agentrl.view.tree import render_tree

__all__ = ["render_list", "render_tree"]
