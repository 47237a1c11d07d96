"""Run a converted model: from graph to a plan of kernel calls."""
