"""Episodes on one self-contained page: no file beside it, no request, readable without scripts."""

from agentrl.view.html.page import diff_page, episode_page, list_page
from agentrl.view.html.shown import Shown

__all__ = ["Shown", "diff_page", "episode_page", "list_page"]
