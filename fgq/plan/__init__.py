"""Which layer gets how many bits: what its schemes take, what they cost, and the best of all assignments."""

from fgq.plan.plan_file import Plan, PlannedLayer, read_plan

__all__ = ["Plan", "PlannedLayer", "read_plan"]
