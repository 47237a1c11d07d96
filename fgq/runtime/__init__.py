"""Run a converted model: from graph to a plan of kernel calls."""

from fgq.runtime.feeds import NodeArg
from fgq.runtime.session import Session, StepInfo, StepTime

__all__ = ["NodeArg", "Session", "StepInfo", "StepTime"]
