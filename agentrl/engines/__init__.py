"""Engines: policies served, token ids in and out."""

from agentrl.engines.contract import Engine, GenerateRequest, Generation, ScoreRequest, Scores
from agentrl.engines.specs import Demonstrations, EngineSpec, Local, SGLang

__all__ = [
    "Demonstrations",
    "Engine",
    "EngineSpec",
    "GenerateRequest",
    "Generation",
    "Local",
    "SGLang",
    "ScoreRequest",
    "Scores",
]
