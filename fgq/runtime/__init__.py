"""Run a converted model: from graph to a plan of kernel calls."""

from fgq.runtime.session import NodeArg, Session, StepInfo

__all__ = ["NodeArg", "Session", "StepInfo"]
