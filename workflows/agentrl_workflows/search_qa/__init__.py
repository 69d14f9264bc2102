"""Question answering by search over the atlas, in the real world and in worlds whose facts are shuffled."""

from agentrl_workflows.search_qa.atlas import World, held_out_cities
from agentrl_workflows.search_qa.demonstrator import demonstrator
from agentrl_workflows.search_qa.model import make_model
from agentrl_workflows.search_qa.questions import Question, exact_match, held_out_questions, train_questions
from agentrl_workflows.search_qa.retrieval import search_of

__all__ = [
    "Question",
    "World",
    "demonstrator",
    "exact_match",
    "held_out_cities",
    "held_out_questions",
    "make_model",
    "search_of",
    "train_questions",
]
