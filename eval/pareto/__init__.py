"""The Pareto study: a family of networks trained from scratch at several precisions, and what each costs."""
