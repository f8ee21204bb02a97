"""The fusion model: one part per file, each with a fast form over a sequence and a step form over one event."""

from model.nets.config import ModelConfig
from model.nets.event import EventBatch
from model.nets.longwave import Longwave, Readout, State

__all__ = ["EventBatch", "Longwave", "ModelConfig", "Readout", "State"]
